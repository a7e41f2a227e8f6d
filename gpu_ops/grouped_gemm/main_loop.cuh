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

#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/storage.cuh"
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

  // The warpgroup's sums over in_features for the first `width` tokens of the tile, still in the
  // fixed exponent of Format::kFactor.
  template <int kWidth = Tile::kTokens>
  __device__ __forceinline__ void run(int width, Accumulators& sums) {
    if constexpr (kWidth > Tile::kNarrowest) {
      if (width < kWidth) return run<kWidth / 2>(width, sums);
    }
    if constexpr (Format::kPromotes) {
      run_promoted<kWidth>(sums);
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

  // Group scales: the tensor cores sum one group, which is then added to float32 registers with its
  // scale. That also keeps their reduced precision to the products of one group.
  template <int kWidth>
  __device__ __forceinline__ void run_promoted(Accumulators& sums) {
    Accumulators group;
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) sums[m][i] = 0.0f;
    }
    Fragments fragments;
    for (int k = 0; k < k_blocks_; ++k) {
      fetch(fragments);
      if constexpr (Format::kStepsPerPromotion == kStepsPerBlock) {
        multiply<kWidth>(group, fragments, ring_.stage, false);
        wgmma_wait<0>();
        promote<kWidth>(group, sums, 0);
      } else {
        const int steps =
            min(kStepsPerBlock, static_cast<int>(params_.in_features / 32) - k * kStepsPerBlock);
        const int steps_per_group = static_cast<int>(params_.group_size / 32);
#pragma unroll
        for (int step = 0; step < kStepsPerBlock; ++step) {
          if (step >= steps) break;  // beyond in_features there are no scales
          multiply_step<kWidth>(group, fragments, ring_.stage, step);
          wgmma_wait<0>();
          promote<kWidth>(group, sums, step / steps_per_group);
        }
      }
      release(ring_.stage);
      ring_.advance();
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
      Format::dequantise(packed.words[m], packed.scales[m], shared_.e2m1_table, fragments.a[m]);
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
