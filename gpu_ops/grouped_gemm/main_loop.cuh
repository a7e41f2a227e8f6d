// Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

// The consumers' main loop: one warpgroup multiplies its 64 * kOutGroups outputs by the tile's
// tokens over all k blocks. Weights go from packed words to A fragments in registers; tokens are
// read by the tensor cores where the copy engine left them.
#pragma once

#include <cfloat>

#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/scheduler.cuh"
#include "grouped_gemm/wgmma.cuh"

namespace w4afp8 {

template <class Tile, class Format>
class MainLoop {
 public:
  using Storage = SharedStorage<Tile, Format>;
  using Accumulators = float[Tile::kOutGroups][Tile::kTokens / 2];

  __device__ MainLoop(const GroupGemmParams& params, Storage& shared)
      : shared_(shared),
        params_(params),
        thread_(threadIdx.x % 128),
        warpgroup_(threadIdx.x / 128),
        k_blocks_(static_cast<int>(ceil_div(params.in_features, kSubBlockIn))) {}

  // Empties the ring for a tile that has no outputs for this warpgroup; false where it has.
  __device__ __forceinline__ bool skips(const TileCoordinates& tile) {
    if constexpr (Tile::kVariesHeight) {
      if (warpgroup_ < tile.sub_blocks) return false;
      for (int k = 0; k < k_blocks_; ++k) {
        ptx::mbarrier_wait(&shared_.full[ring_.stage], ring_.parity);
        release(ring_.stage);
        ring_.advance();
      }
      return true;
    }
    return false;
  }

  // The warpgroup's sums over in_features for the first `width` tokens of the tile, still in the
  // fixed exponent of Format::kFactor.
  template <int kWidth = Tile::kTokens>
  __device__ __forceinline__ void run(int width, Accumulators& sums) {
    if constexpr (kWidth > Tile::kNarrowest) {
      if (width < kWidth) return run<kWidth / 2>(width, sums);
    }
    if constexpr (Format::kGroupScaling == GroupScaling::kPromoted) {
      run_promoted<kWidth>(sums);
    } else if constexpr (Format::kGroupScaling == GroupScaling::kRescaled) {
      run_rescaled<kWidth>(sums);
    } else if constexpr (Tile::kFragmentBuffers == 2) {
      run_overlapped<kWidth>(sums);
    } else {
      run_prefetched<kWidth>(sums);
    }
  }

 private:
  struct Packed {
    PackedWords words[Tile::kOutGroups];
    typename Format::RowScales scales[Tile::kOutGroups];
  };
  struct Fragments {
    Fragment a[Tile::kOutGroups][kStepsPerBlock];
  };
  // Units of the sums of rows g and g + 8: the scale of the group that is being summed, and what
  // takes the sums there from the scale before it.
  //
  // A scale under 2^-80 of the largest so far counts as that (a scale of zero must not be divided
  // by): the group is then off by less than 2^-80 of what its codes would be at the largest scale.
  struct Units {
    float scale[2] = {0.0f, 0.0f};
    float ratio[2];
    float least[2] = {FLT_MIN, FLT_MIN};

    __device__ __forceinline__ void change(int half, float next) {
      least[half] = fmaxf(least[half], fabsf(next) * 0x1p-80f);
      if (fabsf(next) < least[half]) next = least[half];
      ratio[half] = __fdividef(scale[half], next);
      scale[half] = next;
    }
  };
  using Ring = RingPosition<Tile::kStages>;

  // Two fragment buffers: while the tensor cores work on a k block, the next is dequantised.
  template <int kWidth>
  __device__ __forceinline__ void run_overlapped(Accumulators& sums) {
    Fragments even, odd;
    fetch(even);
    for (int k = 0; k < k_blocks_; k += 2) {
      multiply_and_prepare<kWidth>(sums, even, odd, k);
      if (k + 1 < k_blocks_) multiply_and_prepare<kWidth>(sums, odd, even, k + 1);
    }
    wgmma_wait<0>();
    release(last_);
    keep(sums);
  }

  template <int kWidth>
  __device__ __forceinline__ void multiply_and_prepare(Accumulators& sums, const Fragments& current,
                                                       Fragments& next, int k) {
    multiply<kWidth>(sums, current, ring_.stage, k > 0);
    const int stage = ring_.stage;
    ring_.advance();
    wgmma_wait<1>();  // k block k - 1 is done: its tokens and `next`, its fragments, are free
    if (k > 0) release(last_);
    last_ = stage;
    if (k + 1 < k_blocks_) fetch(next);
  }

  // One fragment buffer: only the packed words of the next k block are fetched meanwhile; the other
  // warpgroups keep the tensor cores busy during dequantisation.
  template <int kWidth>
  __device__ __forceinline__ void run_prefetched(Accumulators& sums) {
    Packed packed;
    Fragments fragments;
    load(packed);
    for (int k = 0; k < k_blocks_; ++k) {
      dequantise(packed, fragments);
      multiply<kWidth>(sums, fragments, ring_.stage, k > 0);
      const int stage = ring_.stage;
      ring_.advance();
      if (k + 1 < k_blocks_) load(packed);
      wgmma_wait<0>();
      release(stage);
    }
    keep(sums);
  }

  // Group scales of one or two k steps: the tensor cores sum one step, which is then added to float32
  // registers with its group's scale. That also keeps their reduced precision to 32 products.
  template <int kWidth>
  __device__ __forceinline__ void run_promoted(Accumulators& sums) {
    Accumulators group;
    clear<kWidth>(sums);
    const int steps_per_group = static_cast<int>(params_.group_size / 32);
    Fragments fragments;
    for (int k = 0; k < k_blocks_; ++k) {
      fetch(fragments);
      const int steps =
          min(kStepsPerBlock, static_cast<int>(params_.in_features / 32) - k * kStepsPerBlock);
#pragma unroll
      for (int step = 0; step < kStepsPerBlock; ++step) {
        if (step >= steps) break;  // beyond in_features there are no scales
        multiply_step<kWidth>(group, fragments, ring_.stage, step);
        wgmma_wait<0>();
        promote<kWidth>(group, sums, step / steps_per_group);
      }
      release(ring_.stage);
      ring_.advance();
    }
  }

  // Group scales in place: between two k blocks the sums go from the units of one group's scale to
  // those of the next. Two fragment buffers as in run_overlapped, where there are two.
  template <int kWidth>
  __device__ __forceinline__ void run_rescaled(Accumulators& sums) {
    clear<kWidth>(sums);
    Packed packed;
    Fragments even;
    Units units[Tile::kOutGroups];
    load(packed, units);
    if constexpr (Tile::kFragmentBuffers == 2) {
      Fragments odd;
      dequantise(packed, even);
      for (int k = 0; k < k_blocks_; k += 2) {
        rescale_and_prepare<kWidth>(sums, units, even, odd, k);
        if (k + 1 < k_blocks_) rescale_and_prepare<kWidth>(sums, units, odd, even, k + 1);
      }
    } else {
      for (int k = 0; k < k_blocks_; ++k) {
        dequantise(packed, even);
        rescale_and_multiply<kWidth>(sums, units, even, [&] {
          if (k + 1 < k_blocks_) load(packed, units);
        });
      }
    }
    multiply_rows<kWidth>(sums, [&](int m, int half) { return units[m].scale[half]; });
  }

  template <int kWidth>
  __device__ __forceinline__ void rescale_and_prepare(Accumulators& sums,
                                                      Units (&units)[Tile::kOutGroups],
                                                      const Fragments& current, Fragments& next,
                                                      int k) {
    rescale_and_multiply<kWidth>(sums, units, current, [&] {
      if (k + 1 >= k_blocks_) return;
      Packed packed;
      load(packed, units);
      dequantise(packed, next);
    });
  }

  // One k block; `meanwhile` runs beside its products.
  template <int kWidth, class Meanwhile>
  __device__ __forceinline__ void rescale_and_multiply(Accumulators& sums,
                                                       const Units (&units)[Tile::kOutGroups],
                                                       const Fragments& fragments,
                                                       Meanwhile meanwhile) {
    multiply_rows<kWidth>(sums, [&](int m, int half) { return units[m].ratio[half]; });
    multiply<kWidth>(sums, fragments, ring_.stage, true);
    const int stage = ring_.stage;
    ring_.advance();
    meanwhile();
    wgmma_wait<0>();
    keep(sums);
    release(stage);
  }

  template <int kWidth>
  __device__ __forceinline__ void clear(Accumulators& sums) {
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) sums[m][i] = 0.0f;
    }
  }

  // Multiplies each output's sums by factor(m, half), half 0 and 1 being rows g and g + 8.
  template <int kWidth, class Factor>
  __device__ __forceinline__ void multiply_rows(Accumulators& sums, Factor factor) {
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
      const float factors[2] = {factor(m, 0), factor(m, 1)};
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) sums[m][i] *= factors[i / 2 % 2];
    }
  }

  __device__ __forceinline__ void load(Packed& packed, Units (&units)[Tile::kOutGroups]) {
    load(packed);
    const bool narrow = params_.group_scale_type == GroupScaleType::kBFloat16;
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
      units[m].change(0, scale_at(first_row(m), narrow));
      units[m].change(1, scale_at(first_row(m) + 8, narrow));
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void promote(Accumulators& group, Accumulators& sums, int group_row) {
    keep(group);
    const bool narrow = params_.group_scale_type == GroupScaleType::kBFloat16;
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
      const int out = group_row * Tile::kOut + first_row(m);
      const float scale[2] = {scale_at(out, narrow), scale_at(out + 8, narrow)};
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) {
        sums[m][i] = fmaf(group[m][i], scale[i / 2 % 2], sums[m][i]);
      }
    }
  }

  __device__ __forceinline__ float scale_at(int index, bool narrow) const {
    const uint8_t* scales = shared_.scale[ring_.stage];
    if (narrow) {
      const uint32_t bits = reinterpret_cast<const uint16_t*>(scales)[index];
      return __uint_as_float(bits << 16);
    }
    return reinterpret_cast<const float*>(scales)[index];
  }

  // Output row, inside the tile, of this thread's first accumulator of fragment m; the other is + 8.
  __device__ __forceinline__ int first_row(int m) const {
    return (warpgroup_ * Tile::kOutGroups + m) * 64 + thread_ / 32 * 16 + thread_ % 32 / 4;
  }

  // Waits for the stage and takes this thread's packed words and scales.
  __device__ __forceinline__ void load(Packed& packed) {
    ptx::mbarrier_wait(&shared_.full[ring_.stage], ring_.parity);
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
      const int sub_block = warpgroup_ * Tile::kOutGroups + m;
      packed.words[m].load(shared_.weight[ring_.stage] + sub_block * kSubBlockBytes, thread_);
      packed.scales[m].load(shared_.scale[ring_.stage], first_row(m));
    }
  }

  __device__ __forceinline__ void dequantise(const Packed& packed, Fragments& fragments) {
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
      Format::template dequantise<Tile::kStepsAtOnce>(packed.words[m], packed.scales[m],
                                                      shared_.e2m1_table, fragments.a[m]);
    }
  }

  __device__ __forceinline__ void fetch(Fragments& fragments) {
    Packed packed;
    load(packed);
    dequantise(packed, fragments);
  }

  // Starts the products of one k block.
  template <int kWidth>
  __device__ __forceinline__ void multiply(Accumulators& sums, const Fragments& fragments,
                                           int stage, bool accumulate) {
    wgmma_fence();
    const uint64_t tokens = descriptor(stage);
#pragma unroll
    for (int step = 0; step < kStepsPerBlock; ++step) {
#pragma unroll
      for (int m = 0; m < Tile::kOutGroups; ++m) {
        wgmma<kWidth, Tile::kTokens / 2>(sums[m], fragments.a[m][step], tokens + 2 * step,
                                         accumulate || step > 0);
      }
    }
    wgmma_commit();
  }

  // Starts the products of one k step, overwriting `sums`.
  template <int kWidth>
  __device__ __forceinline__ void multiply_step(Accumulators& sums, const Fragments& fragments,
                                                int stage, int step) {
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
      wgmma<kWidth, Tile::kTokens / 2>(sums[m], fragments.a[m][step], descriptor(stage) + 2 * step,
                                       false);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ uint64_t descriptor(int stage) const {
    return token_tile_descriptor(ptx::shared_address(shared_.tokens[stage]));
  }

  // Gives a stage back to the producers that fill it: every block of the cluster sends tokens here.
  __device__ __forceinline__ void release(int stage) {
    if (thread_ % 32 != 0) return;
    if constexpr (Tile::kCluster == 1) {
      ptx::mbarrier_arrive(&shared_.empty[stage]);
    } else {
#pragma unroll
      for (int rank = 0; rank < Tile::kCluster; ++rank) {
        ptx::mbarrier_arrive_cluster(&shared_.empty[stage], rank);
      }
    }
  }

  __device__ __forceinline__ void keep(Accumulators& sums) {
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) keep_in_place(sums[m]);
  }

  Storage& shared_;
  const GroupGemmParams& params_;
  const int thread_, warpgroup_, k_blocks_;
  Ring ring_;
  int last_ = 0;  // stage whose products were started before the current ones
};

}  // namespace w4afp8
