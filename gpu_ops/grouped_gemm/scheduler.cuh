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

// Persistent tile scheduler: reads the token counts on the device, so any skew works and nothing is
// copied to the host, and walks this block's share of the plan (tile_plan.h).
#pragma once

#include "grouped_gemm/storage.cuh"
#include "grouped_gemm/tile_plan.h"

namespace w4afp8 {

// Little is kept in registers: the consumers need theirs for accumulators.
template <class Tile>
class TileScheduler {
 public:
  using Plan = TilePlan<Tile>;
  struct Shared {
    Plan plan;
    TileSequence sequence;  // of this cluster
  };
  static constexpr int64_t words(int64_t experts) {
    return ExpertTables::kTables * experts + sizeof(Shared) / sizeof(int32_t);
  }

  // `storage`: words(experts) int32 in shared memory.
  __device__ explicit TileScheduler(int32_t* storage)
      : shared_(*reinterpret_cast<Shared*>(storage)),
        storage_(storage + sizeof(Shared) / sizeof(int32_t)) {}

  // Makes the plan. All threads of the block take part; ends with a barrier.
  template <class Storage>
  __device__ void build(const GroupGemmParams& params, Storage& shared) {
    const int experts = static_cast<int>(params.tokens.experts);
    Plan plan;
    plan.experts = plan.tall_experts = experts;
    plan.clusters = gridDim.x / Tile::kCluster;
    plan.sub_blocks = static_cast<int>(params.weight_layout().padded_out() / kSubBlockOut);
    plan.heavy = plan.light = 0;
    plan.has_narrow = false;
    plan.template set_heights<Storage::kHeightStep>();
    plan.token_group = Plan::token_group_of(params.in_features);

    const ExpertTables tables = ExpertTables::at(storage_, experts);
    const int blocks = plan.out_blocks(true);
    for (int first = 0; first < experts; first += Tile::kThreads) {
      const int expert = first + threadIdx.x;
      RowRange rows{0, 0};
      if (expert < experts) rows = params.tokens.rows_of(expert);
      const int32_t count = static_cast<int32_t>(rows.end - rows.begin);
      const int32_t tiles = Plan::token_tiles(count) * blocks;
      // Heavy and light tiles, each fewer than 2^31, in one scan.
      const uint64_t both = static_cast<uint64_t>(tiles) << (Plan::is_heavy(count) ? 32 : 0);
      uint64_t end, total;
      typename Storage::TileScan(shared.scan.tiles).InclusiveSum(both, end, total);
      if (expert < experts) {
        tables.heavy_end[expert] = plan.heavy + static_cast<int32_t>(end >> 32);
        tables.light_end[expert] = plan.light + static_cast<int32_t>(end);
        tables.row_begin[expert] = static_cast<int32_t>(rows.begin);
        tables.count[expert] = count;
      }
      plan.heavy += static_cast<int32_t>(total >> 32);
      plan.light += static_cast<int32_t>(total);
      // Also a barrier: the scan's storage is used again.
      plan.has_narrow |= __syncthreads_or(Plan::ends_narrow(count)) != 0;
    }
    if constexpr (Tile::kAnyHeight) {
      if (plan.light == 0 && plan.heavy > plan.clusters) {
        lower_last_tiles(plan, tables.heavy_end, shared.scan.heights);
      }
    }
    if (plan.template lower_all<Storage::kHeightStep>()) {
      lower_ends(plan, tables.heavy_end, 0);
      lower_ends(plan, tables.light_end, 0);
    }
    plan.finish();
    if (threadIdx.x == 0) {
      shared_.plan = plan;
      shared_.sequence = plan.sequence(blockIdx.x / Tile::kCluster);
    }
    __syncthreads();
  }

  // The next tile of this block (of this cluster); false when there is none.
  __device__ __forceinline__ bool next(TileCoordinates& tile) {
    while (part_ < TileSequence::kParts) {
      TileSteps& steps = shared_.sequence.parts[part_];
      if (!steps.has_tile()) {
        ++part_;
        continue;
      }
      const int index = steps.tile();
      steps.advance();
      tile = shared_.plan.locate(ExpertTables::at(storage_, shared_.plan.experts), index);
      if (tile.num_tokens > 0) return true;
    }
    return false;
  }

 private:
  // Moves the ends of experts with low tiles, which counted tall ones, `tall_tiles` before them.
  __device__ void lower_ends(const Plan& plan, int32_t* ends, int tall_tiles) {
    const int tall = plan.out_blocks(true), low = plan.out_blocks(false);
    for (int expert = threadIdx.x; expert < plan.experts; expert += Tile::kThreads) {
      if (expert >= plan.tall_experts) {
        ends[expert] = tall_tiles + (ends[expert] - tall_tiles) / tall * low;
      }
    }
  }

  // Gives the later experts low tiles where the block with the most work then has less: waves of
  // tall tiles, then waves of low ones. Each thread tries some numbers of experts with tall tiles.
  template <class ReduceStorage>
  __device__ void lower_last_tiles(Plan& plan, int32_t* ends, ReduceStorage& storage) {
    using Key = unsigned long long;  // height of the work, then experts with low tiles
    const int tall = plan.out_blocks(true), low = plan.out_blocks(false);
    const auto waves = [&](int n) { return (n + plan.clusters - 1) / plan.clusters; };
    Key best = ~Key{0};
    for (int experts = threadIdx.x; experts <= plan.experts; experts += Tile::kThreads) {
      const int before = experts > 0 ? ends[experts - 1] : 0;
      const int tall_waves = waves(before);
      const int low_waves = waves(before + (plan.heavy - before) / tall * low) - tall_waves;
      const Key height = tall_waves * plan.tall_height + low_waves * plan.low_height;
      best = min(best, height << 32 | static_cast<Key>(plan.experts - experts));
    }
    best = cub::BlockReduce<Key, Tile::kThreads>(storage).Reduce(
        best, [](Key a, Key b) { return min(a, b); });
    if (threadIdx.x == 0)
      shared_.plan.tall_experts = plan.experts - static_cast<int>(best & 0xFFFFFFFF);
    __syncthreads();
    plan.tall_experts = shared_.plan.tall_experts;
    const int tall_tiles = plan.tall_experts > 0 ? ends[plan.tall_experts - 1] : 0;
    __syncthreads();
    lower_ends(plan, ends, tall_tiles);
    plan.heavy = tall_tiles + (plan.heavy - tall_tiles) / tall * low;
  }

  Shared& shared_;
  int32_t* const storage_;
  int part_ = 0;
};

}  // namespace w4afp8
