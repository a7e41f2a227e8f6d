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

// The consumers' main loop: one warpgroup multiplies its 64 outputs by the tile's tokens over all k
// blocks. Weights go from packed words to A fragments in registers; tokens are read by the tensor
// cores where the copy engine left them.
#pragma once

#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/scheduler.cuh"
#include "grouped_gemm/sums.cuh"

namespace w4afp8 {

template <class Tile, class Format>
class MainLoop {
 public:
  using Storage = SharedStorage<Tile, Format>;
  using Sums =
      std::conditional_t<Format::kSumsInHalves, HalfSums<Tile::kTokens>, FloatSums<Tile::kTokens>>;

  __device__ MainLoop(const GroupGemmParams& params, Storage& shared)
      : shared_(shared),
        params_(params),
        thread_(threadIdx.x % 128),
        warpgroup_(threadIdx.x / 128),
        k_blocks_(static_cast<int>(ceil_div(params.in_features, kSubBlockIn))),
        most_(Sums::largest_scale(k_blocks_)) {}

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
  __device__ __forceinline__ void run(int width, Sums& sums) {
    if constexpr (kWidth > narrowest_tile<Tile, Format>()) {
      if (width < kWidth) return run<kWidth / 2>(width, sums);
    }
    if constexpr (Format::kGroupScaling == GroupScaling::kPromoted) {
      run_promoted<kWidth>(sums);
    } else if constexpr (Format::kSumsInHalves) {
      run_in_halves<kWidth>(sums);
    } else if constexpr (kFragmentBuffers == 2) {
      run_overlapped<kWidth>(sums);
    } else {
      run_prefetched<kWidth>(sums);
    }
  }

 private:
  struct Packed {
    PackedWords words;
    typename Format::RowScales scales;
    float scale[2];  // of rows g and g + 8, where sums of a k block are multiplied by them
  };
  struct Fragments {
    Fragment a[kStepsPerBlock];
  };
  // 2: the next k block is dequantised while the tensor cores work on this one. 1: only its packed
  // words are fetched meanwhile; the other warpgroups keep the tensor cores busy.
  static constexpr int kFragmentBuffers = Tile::kConsumers == 4 && Tile::kTokens >= 64 ? 1 : 2;
  static constexpr bool kIsScaled = Format::kGroupScaling == GroupScaling::kScaled;
  // The epilogue looks at whole chunks.
  template <int kWidth>
  static constexpr int kCleared = kWidth > Tile::kStagedTokens ? kWidth : Tile::kStagedTokens;
  template <int kWidth>
  using Group = uint32_t[kWidth / 4];  // sums of a k block in halves
  using Ring = RingPosition<Tile::kStages>;

  // The tensor cores sum a k block in halves, which HalfSums adds up.
  template <int kWidth>
  __device__ __forceinline__ void run_in_halves(Sums& sums) {
    sums.template clear<kCleared<kWidth>>(kIsScaled ? Sums::kNoUnit : most_);
    Group<kWidth> group;
    Packed packed;
    Fragments even;
    load(packed);
    if constexpr (kFragmentBuffers == 2) {
      Fragments odd;
      dequantise(packed, even);
      for (int k = 0; k < k_blocks_; k += 2) {
        add_and_prepare<kWidth>(sums, group, even, packed, odd, k);
        if (k + 1 < k_blocks_) add_and_prepare<kWidth>(sums, group, odd, packed, even, k + 1);
      }
    } else {
      for (int k = 0; k < k_blocks_; ++k) {
        dequantise(packed, even);
        add_block<kWidth>(sums, group, even, packed, [&] {
          if (k + 1 < k_blocks_) load(packed);
        });
      }
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void add_and_prepare(Sums& sums, Group<kWidth>& group,
                                                  const Fragments& current, Packed& packed,
                                                  Fragments& next, int k) {
    add_block<kWidth>(sums, group, current, packed, [&] {
      if (k + 1 >= k_blocks_) return;
      load(packed);
      dequantise(packed, next);
    });
  }

  // `meanwhile` runs beside the products of the k block and may overwrite `packed`.
  template <int kWidth, class Meanwhile>
  __device__ __forceinline__ void add_block(Sums& sums, Group<kWidth>& group,
                                            const Fragments& fragments, const Packed& packed,
                                            Meanwhile meanwhile) {
    const float scale[2] = {packed.scale[0], packed.scale[1]};
    multiply<kWidth>(group, fragments, ring_.stage, false);
    const int stage = ring_.stage;
    ring_.advance();
    meanwhile();
    wgmma_wait<0>();
    keep_in_place(group);
    release(stage);
    if constexpr (kIsScaled) {
      sums.template add<kWidth>(group, scale, most_);
    } else {
      sums.template add<kWidth>(group, most_);
    }
  }

  // Float32 sums of the tensor cores alone, two fragment buffers.
  template <int kWidth>
  __device__ __forceinline__ void run_overlapped(Sums& sums) {
    Fragments even, odd;
    fetch(even);
    for (int k = 0; k < k_blocks_; k += 2) {
      multiply_and_prepare<kWidth>(sums, even, odd, k);
      if (k + 1 < k_blocks_) multiply_and_prepare<kWidth>(sums, odd, even, k + 1);
    }
    wgmma_wait<0>();
    release(last_);
    keep_in_place(sums.v);
  }

  template <int kWidth>
  __device__ __forceinline__ void multiply_and_prepare(Sums& sums, const Fragments& current,
                                                       Fragments& next, int k) {
    multiply<kWidth>(sums.v, current, ring_.stage, k > 0);
    const int stage = ring_.stage;
    ring_.advance();
    wgmma_wait<1>();  // k block k - 1 is done: its tokens and `next`, its fragments, are free
    if (k > 0) release(last_);
    last_ = stage;
    if (k + 1 < k_blocks_) fetch(next);
  }

  // The same with one fragment buffer.
  template <int kWidth>
  __device__ __forceinline__ void run_prefetched(Sums& sums) {
    Packed packed;
    Fragments fragments;
    load(packed);
    for (int k = 0; k < k_blocks_; ++k) {
      dequantise(packed, fragments);
      multiply<kWidth>(sums.v, fragments, ring_.stage, k > 0);
      const int stage = ring_.stage;
      ring_.advance();
      if (k + 1 < k_blocks_) load(packed);
      wgmma_wait<0>();
      release(stage);
    }
    keep_in_place(sums.v);
  }

  // Group scales of one or two k steps: the tensor cores sum one step, which is then added to float32
  // registers with its group's scale. That also keeps their reduced precision to 32 products.
  template <int kWidth>
  __device__ __forceinline__ void run_promoted(Sums& sums) {
    Sums group;
    sums.template clear<kCleared<kWidth>>();
    const int steps_per_group = static_cast<int>(params_.group_size / 32);
    Fragments fragments;
    for (int k = 0; k < k_blocks_; ++k) {
      fetch(fragments);
      const int steps =
          min(kStepsPerBlock, static_cast<int>(params_.in_features / 32) - k * kStepsPerBlock);
#pragma unroll
      for (int step = 0; step < kStepsPerBlock; ++step) {
        if (step >= steps) break;  // beyond in_features there are no scales
        wgmma_fence();
        wgmma<kWidth>(group.v, fragments.a[step], descriptor(ring_.stage) + 2 * step, false);
        wgmma_commit();
        wgmma_wait<0>();
        promote<kWidth>(group, sums, step / steps_per_group);
      }
      release(ring_.stage);
      ring_.advance();
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void promote(Sums& group, Sums& sums, int group_row) {
    keep_in_place(group.v);
    const int out = group_row * Tile::kOut + first_row();
    const float scale[2] = {scale_at(out), scale_at(out + 8)};
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) {
      sums.v[i] = fmaf(group.v[i], scale[i / 2 % 2], sums.v[i]);
    }
  }

  // Waits for the stage and takes this thread's packed words and scales.
  __device__ __forceinline__ void load(Packed& packed) const {
    ptx::mbarrier_wait(&shared_.full[ring_.stage], ring_.parity);
    packed.words.load(shared_.weight[ring_.stage] + warpgroup_ * kSubBlockBytes, thread_);
    packed.scales.load(shared_.scale[ring_.stage], first_row());
    if constexpr (kIsScaled) {
      packed.scale[0] = scale_at(first_row());
      packed.scale[1] = scale_at(first_row() + 8);
    }
  }

  __device__ __forceinline__ void dequantise(const Packed& packed, Fragments& fragments) const {
    Format::template dequantise<kStepsPerBlock / kFragmentBuffers>(packed.words, packed.scales,
                                                                   shared_.e2m1_table, fragments.a);
  }

  __device__ __forceinline__ void fetch(Fragments& fragments) const {
    Packed packed;
    load(packed);
    dequantise(packed, fragments);
  }

  // Starts the products of one k block.
  template <int kWidth, class T, int kCount>
  __device__ __forceinline__ void multiply(T (&sums)[kCount], const Fragments& fragments, int stage,
                                           bool accumulate) const {
    wgmma_fence();
    const uint64_t tokens = descriptor(stage);
#pragma unroll
    for (int step = 0; step < kStepsPerBlock; ++step) {
      wgmma<kWidth>(sums, fragments.a[step], tokens + 2 * step, accumulate || step > 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ float scale_at(int index) const {
    const uint8_t* scales = shared_.scale[ring_.stage];
    if (params_.group_scale_type == GroupScaleType::kBFloat16) {
      const uint32_t bits = reinterpret_cast<const uint16_t*>(scales)[index];
      return __uint_as_float(bits << 16);
    }
    return reinterpret_cast<const float*>(scales)[index];
  }

  // Output row, inside the tile, of this thread's first accumulator; the other is + 8.
  __device__ __forceinline__ int first_row() const {
    return warpgroup_ * 64 + thread_ / 32 * 16 + thread_ % 32 / 4;
  }

  __device__ __forceinline__ uint64_t descriptor(int stage) const {
    return token_tile_descriptor(ptx::shared_address(shared_.tokens[stage]));
  }

  // Gives a stage back to the producers that fill it: every block of the cluster sends tokens here.
  __device__ __forceinline__ void release(int stage) const {
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

  Storage& shared_;
  const GroupGemmParams& params_;
  const int thread_, warpgroup_, k_blocks_;
  const float most_;  // see HalfSums
  Ring ring_;
  int last_ = 0;  // stage whose products were started before the current ones
};

}  // namespace w4afp8
