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
// copied to the host. Tiles are numbered expert by expert, then output block by output block, then
// token tile by token tile, so that blocks which run together share a weight tile in L2.
//
// The last wave is evened out in one of two ways, neither of which splits a sum. Tiles whose
// warpgroups share nothing but tokens may be a sub-block lower for the later experts; wide tiles of
// the last wave are split along the tokens.
#pragma once

#include "grouped_gemm/storage.cuh"

namespace w4afp8 {

struct TileCoordinates {
  int expert;
  int sub_block;   // first of the tile's sub-blocks of 64 outputs; of the cluster's first block
  int sub_blocks;  // of a block: 1 .. Tile::kSubBlocks where Tile::kVariesHeight
  int row_begin;   // first row of x
  int num_tokens;  // 1 .. Tile::kTokens
  bool alone;      // the expert has no other token tile: its weights are read once
};

// Little is kept in registers: the consumers need theirs for accumulators.
template <class Tile>
class TileScheduler {
 public:
  static constexpr int64_t words(int64_t experts) { return 3 * experts + kPlanWords; }

  // `tables` holds words(experts) int32 in shared memory: for each expert the running sum of the
  // tiles, its first row and its number of rows; before them the Plan.
  __device__ TileScheduler(const GroupGemmParams& params, int32_t* tables)
      : experts_(static_cast<int>(params.tokens.experts)),
        stride_(gridDim.x / Tile::kCluster),
        position_(blockIdx.x / Tile::kCluster - (Tile::kSplits ? stride_ : 0)),
        plan_(tables),
        tables_(tables + kPlanWords) {}

  // Fills the tables. All threads of the block take part; ends with a barrier.
  template <class ScanStorage>
  __device__ void build(const GroupGemmParams& params, ScanStorage& scan) {
    const int sub_blocks = static_cast<int>(params.weight_layout().padded_out() / kSubBlockOut);
    const int tall = out_blocks(sub_blocks, Tile::kSubBlocks * Tile::kCluster);
    const int low = out_blocks(sub_blocks, kLowSubBlocks);

    int32_t tiles = 0;
    for (int first = 0; first < experts_; first += Tile::kThreads) {
      const int expert = first + threadIdx.x;
      RowRange rows{0, 0};
      if (expert < experts_) rows = params.tokens.rows_of(expert);
      const int32_t count = static_cast<int32_t>(rows.end - rows.begin);
      int32_t end, total;
      cub::BlockScan<int32_t, Tile::kThreads>(scan.tiles)
          .InclusiveSum((count + Tile::kTokens - 1) / Tile::kTokens * tall, end, total);
      if (expert < experts_) {
        tables_[expert] = tiles + end;
        tables_[experts_ + expert] = static_cast<int32_t>(rows.begin);
        tables_[2 * experts_ + expert] = count;
      }
      tiles += total;
      __syncthreads();  // the scan's storage is used again
    }
    int tall_experts = experts_;
    if constexpr (Tile::kVariesHeight) {
      // One wave of tall tiles cannot be made shorter.
      if (tiles > stride_) tall_experts = lower_tiles(tiles, tall, low, scan.heights);
    }
    if (threadIdx.x == 0) {
      plan_[kSubBlocks] = sub_blocks;
      plan_[kTallOutBlocks] = tall;
      plan_[kLowOutBlocks] = low;
      plan_[kTallExperts] = tall_experts;
      plan_last_wave(tiles);
    }
    __syncthreads();
  }

  // The next tile of this block (of this cluster); false when there is none.
  __device__ __forceinline__ bool next(TileCoordinates& tile) {
    while (position_ < plan_[kWhole]) {
      const int current = position_;
      position_ += stride_;
      if (!Tile::kSplits || current >= 0) {
        locate(tile, current, 0, 0);
        return true;
      }
      // Parts of tiles come first.
      const int part = position_, shift = plan_[kSplitShift];
      if (part >= plan_[kParts]) continue;
      locate(tile, plan_[kWhole] + (part >> shift), shift, part & ((1 << shift) - 1));
      if (tile.num_tokens > 0) return true;
    }
    return false;
  }

 private:
  static constexpr int kLowSubBlocks = Tile::kVariesHeight ? Tile::kSubBlocks - 1 : 1;
  enum Plan {
    kSubBlocks,      // of an expert
    kTallOutBlocks,  // tiles along the outputs of an expert whose tiles are Tile::kSubBlocks high
    kLowOutBlocks,   // of one whose tiles are a sub-block lower
    kTallExperts,    // the first so many experts
    kWhole,          // tiles that are not split
    kParts,          // of those that are: the last wave's where Tile::kSplits
    kSplitShift,     // a tile has 2^shift parts
    kPlanWords
  };

  __device__ static int out_blocks(int sub_blocks, int height) {
    return (sub_blocks + height - 1) / height;
  }

  // Gives the later experts low tiles where the block with the most work then has less: waves of
  // tall tiles, then waves of low ones. Each thread tries some numbers of experts with tall tiles.
  // Returns that number and changes the sums of the tables, and `tiles`, accordingly.
  template <class ReduceStorage>
  __device__ int lower_tiles(int32_t& tiles, int tall, int low, ReduceStorage& storage) {
    using Key = unsigned long long;  // height of the work, then experts with low tiles
    Key best = ~Key{0};
    for (int experts = threadIdx.x; experts <= experts_; experts += Tile::kThreads) {
      const int before = experts > 0 ? tables_[experts - 1] : 0;
      const int tall_waves = out_blocks(before, stride_);
      const int waves = out_blocks(before + (tiles - before) / tall * low, stride_);
      const Key height = tall_waves * Tile::kSubBlocks + (waves - tall_waves) * kLowSubBlocks;
      best = min(best, height << 32 | static_cast<Key>(experts_ - experts));
    }
    best = cub::BlockReduce<Key, Tile::kThreads>(storage).Reduce(
        best, [](Key a, Key b) { return min(a, b); });
    if (threadIdx.x == 0) plan_[kTallExperts] = experts_ - static_cast<int>(best & 0xFFFFFFFF);
    __syncthreads();
    const int tall_experts = plan_[kTallExperts];
    const int tall_tiles = tall_experts > 0 ? tables_[tall_experts - 1] : 0;
    __syncthreads();
    for (int expert = threadIdx.x; expert < experts_; expert += Tile::kThreads) {
      if (expert >= tall_experts) {
        tables_[expert] = tall_tiles + (tables_[expert] - tall_tiles) / tall * low;
      }
    }
    tiles = tall_tiles + (tiles - tall_tiles) / tall * low;
    return tall_experts;
  }

  __device__ void plan_last_wave(int tiles) {
    const int last_wave = Tile::kSplits ? tiles % stride_ : 0;
    int shift = 0;
    while (Tile::kNarrowest << shift < Tile::kTokens && last_wave << (shift + 1) <= stride_) {
      ++shift;
    }
    plan_[kWhole] = tiles - last_wave;
    plan_[kParts] = last_wave << shift;
    plan_[kSplitShift] = shift;
  }

  // Part `part` of the 2^shift parts of a tile; the last parts may have no tokens.
  __device__ __forceinline__ void locate(TileCoordinates& tile, int index, int shift, int part) {
    tile.expert = expert_of(index);
    const int count = tables_[2 * experts_ + tile.expert];
    const int token_tiles = (count + Tile::kTokens - 1) / Tile::kTokens;
    const bool tall = !Tile::kVariesHeight || tile.expert < plan_[kTallExperts];
    const int out_blocks = plan_[tall ? kTallOutBlocks : kLowOutBlocks];
    const int local = index - (tile_end(tile.expert) - token_tiles * out_blocks);
    const int out_block = local / token_tiles;
    const int height = tall ? Tile::kSubBlocks : kLowSubBlocks;
    tile.sub_block = out_block * height * Tile::kCluster;
    tile.sub_blocks =
        Tile::kVariesHeight ? min(height, plan_[kSubBlocks] - tile.sub_block) : Tile::kSubBlocks;
    const int most = Tile::kTokens >> shift;
    const int token_begin = (local - out_block * token_tiles) * Tile::kTokens + part * most;
    tile.row_begin = tables_[experts_ + tile.expert] + token_begin;
    tile.num_tokens = min(count - token_begin, most);
    tile.alone = token_tiles == 1 && shift == 0;
  }

  // Tiles of the experts up to and including `expert`.
  __device__ __forceinline__ int tile_end(int expert) const { return tables_[expert]; }

  // First expert whose tiles end after `tile`: the tables hold running sums.
  __device__ __forceinline__ int expert_of(int tile) const {
    int low = 0, high = experts_ - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (tile_end(middle) > tile) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  const int experts_, stride_;
  int position_;  // of this block's next tile; negative: its part of the last wave
  int32_t* const plan_;
  int32_t* const tables_;
};

}  // namespace w4afp8
