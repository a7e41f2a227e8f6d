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

// What the host knows of a launch's tiles, whatever its counts are.
#pragma once

#include <algorithm>

#include "grouped_gemm/tile_plan.h"

namespace w4afp8 {

// Tiles of one cluster that there can be, if blocks have `outs` outputs.
template <class Tile>
int64_t most_tiles(const GroupGemmParams& params, int64_t outs) {
  const int64_t out_blocks = ceil_div(params.weight_layout().padded_out(), outs * Tile::kCluster);
  const int64_t token_tiles = std::min(
      params.tokens.num_rows, params.tokens.num_rows / Tile::kTokens + params.tokens.experts);
  return token_tiles * out_blocks;
}

// One block a multiprocessor, fewer where there cannot be that many tiles.
template <class Tile>
int clusters_of(const GroupGemmParams& params, int multiprocessors) {
  const int64_t lowest = Tile::kVariesHeight ? kSubBlockOut : Tile::kOut;
  const int64_t most = multiprocessors / Tile::kCluster;
  return static_cast<int>(std::min(most, most_tiles<Tile>(params, lowest)));
}

// Whether tiles may be taken, not dealt out (tile_plan.h): not worth the host's time where none can be.
// Tiles that are more than a wave are tall, unless they may be helped.
template <class Tile>
bool may_take(const GroupGemmParams& params, int multiprocessors) {
  constexpr int64_t kOuts = Tile::kMayHelp ? kSubBlockOut : Tile::kOut;
  return TilePlan<Tile>::can_take(params.weight_layout().k_blocks()) &&
         most_tiles<Tile>(params, kOuts) > multiprocessors / Tile::kCluster;
}

}  // namespace w4afp8
