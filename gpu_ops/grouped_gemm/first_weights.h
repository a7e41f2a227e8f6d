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

// What a launch will probably read first: it is brought to L2 while the kernel before still runs.
#pragma once

#include "grouped_gemm/config.h"

namespace w4afp8 {

// Of the packed weights, in bytes.
struct WeightPiece {
  int64_t begin;
  int64_t size;
};

// K blocks of a band, 64 KB: with 8 some launches take 4% longer (kernel-log.md, run 126).
constexpr int kFirstBlocks = 4;

// What block `block` asks for. Before a block has its first data, memory has nothing to do for microseconds: until the
// kernel before has ended, and while the plan is made. Weights wait for neither. If all experts have tokens, as many
// as each other, the first tiles need the first bands, of which each block takes one: the first k blocks of it. Where
// experts have none that is in part in vain, so it is nothing where there are fewer rows than experts. Nor in clusters,
// whose launches take as long with it (kernel-log.md, run 127).
template <class Tile>
W4AFP8_HOST_DEVICE WeightPiece first_weights(const GroupGemmParams& params, int block) {
  const int experts = static_cast<int>(params.tokens.experts);
  const int rows = static_cast<int>(params.tokens.num_rows);
  if (!Tile::kVariesHeight || rows < experts) return {0, 0};
  const WeightLayout layout = params.weight_layout();
  constexpr int kPerBand = kBandOut / kSubBlockOut;
  const int sub_blocks = static_cast<int>(layout.padded_out() / kSubBlockOut);
  const int bands = (sub_blocks + kPerBand - 1) / kPerBand;
  // An expert's token tiles follow each other, and share their weights. What padding holds nobody knows yet.
  const int tokens = params.tokens.padding > 0 ? 1 : rows / experts;
  const int token_tiles = (tokens + Tile::kTokens - 1) / Tile::kTokens;
  const int tile = block / token_tiles, expert = tile / bands;
  if (block % token_tiles != 0 || expert >= experts) return {0, 0};

  const int first = (tile - expert * bands) * kPerBand;  // sub-block
  const int height = sub_blocks - first < kPerBand ? sub_blocks - first : kPerBand;
  const int64_t bytes = kSubBlockOut * layout.padded_in() / 2;  // of a sub-block's outputs
  constexpr int64_t kMost = kFirstBlocks * kSubBlockBytes;
  return {expert * layout.expert_bytes() + layout.sub_block_offset(first, 0),
          height * (bytes < kMost ? bytes : kMost)};
}

}  // namespace w4afp8
