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
// token tile by token tile, so that blocks which run together share a weight tile in L2. Where the
// last wave would leave half of the blocks without a tile, its tiles are split along the tokens.
#pragma once

#include "grouped_gemm/storage.cuh"

namespace w4afp8 {

struct TileCoordinates {
  int expert;
  int out_block;   // in units of Tile::kOut * Tile::kCluster
  int row_begin;   // first row of x
  int num_tokens;  // 1 .. Tile::kTokens
  bool alone;      // the expert has no other token tile: its weights are read once
};

// Little is kept in registers: the consumers need theirs for accumulators.
template <class Tile>
class TileScheduler {
 public:
  static constexpr int64_t words(int64_t experts) { return 3 * experts + 4; }

  // `tables` holds words(experts) int32 in shared memory: for each expert the running sum of the
  // tiles, its first row and its number of rows; then the four of Plan.
  __device__ TileScheduler(const GroupGemmParams& params, int32_t* tables)
      : experts_(static_cast<int>(params.tokens.experts)),
        tile_(blockIdx.x / Tile::kCluster),
        tables_(tables) {}

  // Fills the tables. All threads of the block take part; ends with a barrier.
  template <class ScanStorage>
  __device__ void build(const GroupGemmParams& params, ScanStorage& scan) {
    const int64_t padded_out = params.weight_layout().padded_out();
    const int out_blocks = static_cast<int>(ceil_div(padded_out, Tile::kOut * Tile::kCluster));

    int32_t before = 0;
    for (int first = 0; first < experts_; first += Tile::kThreads) {
      const int expert = first + threadIdx.x;
      RowRange rows{0, 0};
      if (expert < experts_) rows = params.tokens.rows_of(expert);
      const int32_t count = static_cast<int32_t>(rows.end - rows.begin);
      int32_t end, total;
      cub::BlockScan<int32_t, Tile::kThreads>(scan).InclusiveSum(
          (count + Tile::kTokens - 1) / Tile::kTokens * out_blocks, end, total);
      if (expert < experts_) {
        tables_[expert] = before + end;
        tables_[experts_ + expert] = static_cast<int32_t>(rows.begin);
        tables_[2 * experts_ + expert] = count;
      }
      before += total;
      __syncthreads();  // the scan's storage is used again
    }
    if (threadIdx.x == 0) make_plan(out_blocks, before);
    __syncthreads();
  }

  // The next tile of this block (of this cluster); false when there is none.
  __device__ __forceinline__ bool next(TileCoordinates& tile) {
    const int stride = gridDim.x / Tile::kCluster;
    while (tile_ < plan(kEnd)) {
      const int current = tile_;
      tile_ += stride;
      if constexpr (Tile::kNarrowest == Tile::kTokens) {
        locate(tile, current, 0, 0);
        return true;
      } else {
        const int first_split = plan(kFirstSplit), shift = plan(kSplitShift);
        const int part = current - first_split;
        if (part < 0) {
          locate(tile, current, 0, 0);
        } else {
          locate(tile, first_split + (part >> shift), shift, part & ((1 << shift) - 1));
        }
        if (tile.num_tokens > 0) return true;
      }
    }
    return false;
  }

 private:
  enum Plan {
    kOutBlocks,   // of an expert
    kFirstSplit,  // first tile of the last wave
    kSplitShift,  // its tiles are split into 2^shift parts: as many as there are blocks for
    kEnd,         // tiles, the split ones counted by parts
  };

  __device__ void make_plan(int out_blocks, int tiles) {
    const int stride = gridDim.x / Tile::kCluster;
    const int last_wave = tiles % stride;
    int shift = 0;
    while (Tile::kNarrowest << shift < Tile::kTokens && last_wave << (shift + 1) <= stride) ++shift;
    plan(kOutBlocks) = out_blocks;
    plan(kFirstSplit) = tiles - last_wave;
    plan(kSplitShift) = shift;
    plan(kEnd) = tiles - last_wave + (last_wave << shift);
  }

  __device__ __forceinline__ int32_t& plan(Plan word) { return tables_[3 * experts_ + word]; }

  // Part `part` of the 2^shift parts of a tile; the last parts may have no tokens.
  __device__ __forceinline__ void locate(TileCoordinates& tile, int index, int shift, int part) {
    tile.expert = expert_of(index);
    const int count = tables_[2 * experts_ + tile.expert];
    const int token_tiles = (count + Tile::kTokens - 1) / Tile::kTokens;
    const int local = index - (tile_end(tile.expert) - token_tiles * plan(kOutBlocks));
    tile.out_block = local / token_tiles;
    const int most = Tile::kTokens >> shift;
    const int token_begin = (local - tile.out_block * token_tiles) * Tile::kTokens + part * most;
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

  const int experts_;
  int tile_;  // next tile of this block
  int32_t* const tables_;
};

}  // namespace w4afp8
