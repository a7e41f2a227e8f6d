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

// The kernel of the up projections: a block owns some outputs of one head, takes their weights into
// registers and walks its token tiles, whose copies run kStages - 1 tiles ahead.
#pragma once

#include "common/grid_dependency.cuh"
#include "mla_up/epilogue.cuh"
#include "mla_up/float8_product.cuh"
#include "mla_up/product.cuh"
#include "mla_up/tokens.cuh"

namespace w4afp8 {

// When a block lets the next kernel's blocks start.
enum class Dependents {
  kAtOnce,      // few of them fit beside this grid
  kAfterLoads,  // else the grids of many launches wait on the device at a time: each becomes slower
  kNearEnd,     // of a long kernel, beside which they would wait for nothing
  kAtEnd,
};

// Activations as tensor copies see them: [tokens][heads][inputs].
struct NoTokenMap {};
template <class Tile>
using MlaTokenMap = std::conditional_t<Tile::kBoxes, CUtensorMap, NoTokenMap>;

// Grid: outputs (x, fastest), heads (y), so that blocks that run together write neighbouring memory,
// and chunks of tokens (z): a block has every gridDim.z-th token tile.
template <class Tile>
class MlaKernel {
 public:
  using Sums = float[Tile::kTokens / 2];

  __device__ MlaKernel(const MlaUpParams& params, const MlaTokenMap<Tile>& map, uint8_t* shared)
      : params_(params),
        map_(map),
        shared_(shared),
        stages_(ptx::shared_address(shared)),
        row_(threadIdx.x / 128 % Tile::kRows),
        split_(threadIdx.x / (128 * Tile::kRows)),
        out_(blockIdx.x * Tile::kOut + row_ * Tile::kOutBlocks * 64),
        loaded_tile_(blockIdx.z),
        epilogue_(params, shared + Tile::kStagedOffset +
                              row_ * Tile::kStagedBuffers * Tile::kStagedBytes) {}

  __device__ __forceinline__ void run() {
    const Dependents dependents = choose_dependents();
    if (dependents == Dependents::kAtOnce) launch_dependents();
    if (dependents != Dependents::kAtEnd) {
#pragma unroll
      for (int m = 0; m < Tile::kOutBlocks; ++m) {
        prefetch_mla_weights<Tile>(params_, out_ + m * 64, split_);
      }
    }
    if constexpr (Tile::kBoxes) make_barriers();
    wait_for_previous_grids();
#pragma unroll
    for (int m = 0; m < Tile::kOutBlocks; ++m) {
      product_[m].load(params_, out_ + m * 64, split_);
    }
    load_first();
    if (dependents == Dependents::kAfterLoads) launch_dependents();
#pragma unroll
    for (int m = 0; m < Tile::kOutBlocks; ++m) product_[m].look_at_scales();
#pragma unroll
    for (int m = 0; m < Tile::kOutBlocks; ++m) product_[m].prepare();
    if constexpr (Tile::kOneTile) {
      run_tile(blockIdx.z);
    } else {
#pragma unroll 1
      for (uint32_t tile = blockIdx.z; tile * Tile::kTokens < params_.tokens; tile += gridDim.z) {
        if (Tile::kMayBeLong && dependents == Dependents::kNearEnd && is_near_end(tile)) {
          launch_dependents();
        }
        run_tile(tile);
      }
    }
  }

 private:
  __device__ __forceinline__ Dependents choose_dependents() const {
    constexpr uint32_t kHalfFull = 66 * Tile::kBlocksPerSm;  // blocks, of 132 multiprocessors
    if (!params_.starts_early()) return Dependents::kAtEnd;
    if (params_.starts_next_near_end()) return Dependents::kNearEnd;
    const uint32_t blocks = gridDim.x * gridDim.y * gridDim.z;
    return blocks >= kHalfFull ? Dependents::kAtOnce : Dependents::kAfterLoads;
  }

  // With its last two tiles.
  __device__ __forceinline__ bool is_near_end(uint32_t tile) const {
    return (tile + 2 * gridDim.z) * Tile::kTokens >= params_.tokens;
  }

  __device__ __forceinline__ void make_barriers() {
    if (threadIdx.x != 0) return;
    ptx::prefetch_tensor_map(&map_);
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) ptx::mbarrier_init(&barriers()[part], 1);
    ptx::fence_mbarrier_init();
  }

  __device__ __forceinline__ uint64_t* barriers() const {
    return reinterpret_cast<uint64_t*>(shared_ + Tile::kBarriersOffset);
  }

  __device__ __forceinline__ void load_first() {
    if constexpr (Tile::kBoxes) {
      if (threadIdx.x == 0) {
        load_boxes<Tile>(map_, blockIdx.z * Tile::kTokens, stages_, barriers());
      }
      __syncthreads();  // the barriers are made
    } else {
#pragma unroll
      for (int i = 0; i < Tile::kAhead; ++i) load_next();
    }
  }

  // Starts the copies of one part; past the last an empty group, as the waits count groups.
  __device__ __forceinline__ void load_next() {
    const uint32_t first = loaded_tile_ * Tile::kTokens;
    if (Tile::kOneTile || first < params_.tokens) {
      const uint32_t stage = stages_ + loaded_stage_ * Tile::kStageBytes;
      load_tokens<Tile>(params_, first, loaded_part_, stage);
      if (Tile::kFloat8 && loaded_part_ + 1 == Tile::kParts) {
        load_token_scales<Tile>(params_, first, stages_ + scales_offset(loaded_stage_));
      }
    }
    copy_async_commit();
    if constexpr (!Tile::kOneTile) {
      if (++loaded_part_ == Tile::kParts) loaded_part_ = 0, loaded_tile_ += gridDim.z;
      if (++loaded_stage_ == Tile::kStages) loaded_stage_ = 0;
    }
  }

  __device__ __forceinline__ static uint32_t scales_offset(int stage) {
    return Tile::kScalesOffset + stage * Tile::kScaleBytes;
  }

  __device__ __forceinline__ void run_tile(uint32_t tile) {
    run_parts(tile, std::make_integer_sequence<int, Tile::kParts>{});
  }

  template <int... kPart>
  __device__ __forceinline__ void run_parts(uint32_t tile, std::integer_sequence<int, kPart...>) {
    Sums sums;
    (run_part<kPart>(tile, sums), ...);
  }

  template <int kPart>
  __device__ __forceinline__ void run_part(uint32_t tile, Sums& sums) {
    if constexpr (Tile::kBoxes) {
      ptx::mbarrier_wait(&barriers()[kPart], 0);
    } else {
      copy_async_wait<Tile::kAhead - 1>();
      fence_for_wgmma();
      __syncthreads();  // all copies of this part are here; nobody reads what is overwritten next
      if constexpr (!Tile::kOneTile) load_next();
    }
    const int block = split_ * Tile::kOwnBlocks + (Tile::kBoxes ? kPart : 0);
    const uint32_t tokens = stages_ + stage_ * Tile::kStageBytes + block * (Tile::kTokens * 128);
    const float* scales = reinterpret_cast<const float*>(shared_ + scales_offset(stage_));
    if (!Tile::kOneTile && ++stage_ == Tile::kStages) stage_ = 0;
#pragma unroll
    for (int m = 0; m < Tile::kOutBlocks; ++m) {
      product_[m].template run<kPart>(tokens, sums);
      if constexpr (kPart + 1 == Tile::kParts) {
        product_[m].finish(sums);
        if constexpr (Tile::kSplits > 1) {
          if (!add_splits(sums)) break;
        }
        if (out_ + m * 64 < static_cast<uint32_t>(params_.out_features)) {
          epilogue_.store(sums, product_[m].weights(), scales, tile * Tile::kTokens, out_ + m * 64);
        }
      }
    }
  }

  // Sums of the other warpgroups with these outputs are added to those of the first, which alone
  // goes on. The order does not depend on the tokens.
  __device__ __forceinline__ bool add_splits(Sums& sums) {
    constexpr int kVectors = Tile::kTokens / 8;
    float4* all = reinterpret_cast<float4*>(shared_ + Tile::kSumsOffset) + threadIdx.x % 128;
    const auto at = [&](uint32_t split, int i) -> float4& {
      return all[(((split - 1) * Tile::kRows + row_) * kVectors + i) * 128];
    };
    if (split_ > 0) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        at(split_, i) = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
      }
    }
    // Named barriers after those of the epilogue's warpgroups.
    ptx::named_barrier_sync(1 + Tile::kRows + row_, 128 * Tile::kSplits);
    if (split_ > 0) return false;
#pragma unroll
    for (int split = 1; split < Tile::kSplits; ++split) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const float4 other = at(split, i);
        sums[4 * i] += other.x, sums[4 * i + 1] += other.y;
        sums[4 * i + 2] += other.z, sums[4 * i + 3] += other.w;
      }
    }
    return true;
  }

  const MlaUpParams& params_;
  const MlaTokenMap<Tile>& map_;
  uint8_t* shared_;
  const uint32_t stages_;  // address of the first stage
  const uint32_t row_, split_;
  const uint32_t out_;  // first output of this warpgroup
  uint32_t loaded_tile_;
  int loaded_part_ = 0, loaded_stage_ = 0;  // what is loaded next, and where to
  int stage_ = 0;
  MlaProductOf<Tile> product_[Tile::kOutBlocks];
  MlaEpilogue<Tile> epilogue_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    mla_up_kernel(const __grid_constant__ MlaUpParams params,
                  const __grid_constant__ MlaTokenMap<Tile> map) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  MlaKernel<Tile>(params, map, shared_bytes).run();
}

}  // namespace w4afp8
