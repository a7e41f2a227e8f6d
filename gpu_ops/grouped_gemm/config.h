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

// Tile shapes of the grouped GEMM and the choice among them. Host-safe.
#pragma once

#include <algorithm>

#include "grouped_gemm/params.h"

namespace w4afp8 {

constexpr int kMaxSharedBytes = 232448;  // of one block on sm_90: 227 KB

// The product runs transposed: outputs are the m of wgmma, 64 for each of kOutGroups fragments of a
// consumer warpgroup; tokens are its n.
template <int kOutGroups_, int kConsumers_, int kTokens_, int kNarrowest_, int kStages_,
          int kCluster_>
struct TileShape {
  static constexpr int kOutGroups = kOutGroups_;  // 64-output fragments of a consumer warpgroup
  static constexpr int kConsumers = kConsumers_;  // consumer warpgroups
  static constexpr int kTokens = kTokens_;        // tokens of a tile, at most
  // Tiles with few tokens, and those split to fill the last wave, are kTokens halved down to this.
  static constexpr int kNarrowest = kNarrowest_;
  static constexpr int kStages = kStages_;    // k blocks of 128 in flight
  static constexpr int kCluster = kCluster_;  // blocks along out that share their tokens
  // A tile may have fewer sub-blocks: the warpgroups beyond them have nothing to do.
  static constexpr bool kVariesHeight = kOutGroups == 1 && kConsumers == 4 && kTokens >= 64;
  // The last wave's tiles may be split along the tokens.
  static constexpr bool kSplits = kNarrowest < kTokens;
  // Registers and shared memory are short.
  static constexpr bool kIsCrowded = kConsumers == 4 && kTokens > 64;
  // 2: the next k block is dequantised while the tensor cores work on this one. 1: only its packed
  // words are fetched meanwhile; the other warpgroups keep the tensor cores busy.
  static constexpr int kFragmentBuffers = kIsCrowded ? 1 : 2;
  // k steps that are dequantised together.
  static constexpr int kStepsAtOnce = 4 / kFragmentBuffers;

  static constexpr int kSubBlocks = kOutGroups * kConsumers;
  static constexpr int kOut = 64 * kSubBlocks;
  // A full producer warpgroup where setmaxnreg must move registers to the consumers.
  static constexpr bool kMovesRegisters = kOutGroups * kTokens >= 64;
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kThreads = kConsumerThreads + (kMovesRegisters ? 128 : 32);
  // Per-thread registers after the move. A block starts with 65536 / threads, rounded down to 8:
  // 168 * 384 >= 224 * 256 + 56 * 128, 96 * 640 >= 112 * 512 + 32 * 128.
  static constexpr int kConsumerRegisters = kConsumers == 4 ? 112 : 224;
  static constexpr int kProducerRegisters = kConsumers == 4 ? 32 : 56;
  // Tokens of one copy: the widest tile is one from each block of the cluster, half of it is one
  // from the first block.
  static constexpr int kBoxTokens = kTokens / kCluster;
  // Tokens that pass through the staging buffer of the epilogue at a time.
  static constexpr int kStagedTokens = kIsCrowded ? 32 : kNarrowest < 64 ? kNarrowest : 64;

  // Width of a tile with this many tokens: the n of its wgmmas.
  W4AFP8_HOST_DEVICE static int width_of(int num_tokens) {
    int width = kTokens;
    while (width > kNarrowest && num_tokens <= width / 2) width /= 2;
    return width;
  }

  static_assert(kNarrowest % 16 == 0 && kTokens <= 256, "the epilogue stages 16 tokens at a time");
  static_assert(kConsumers == 2 || kConsumers == 4, "register budgets are given for 2 and 4");
  static_assert(kSubBlockOut * kSubBlocks <= kBandOut,
                "a tile touches two bands of the weight at most");
  static_assert(kNarrowest >= kBoxTokens && kBoxTokens % 8 == 0, "tiles are whole boxes");
};

//                fragments, consumers, tokens, narrowest, stages, cluster
using TileDecode = TileShape<1, 4, 16, 16, 5, 1>;      // 256 x 16
using TileSmall = TileShape<1, 4, 64, 64, 5, 1>;       // 256 x 64
using TileMedium = TileShape<1, 4, 128, 128, 5, 1>;    // 256 x 128
using TilePromoted = TileShape<1, 2, 128, 128, 6, 1>;  // 128 x 128, a second accumulator set fits
using TileLarge = TileShape<1, 2, 256, 128, 4, 2>;     // 128 x 256

enum class TileKind : int32_t { kDecode, kSmall, kMedium, kPromoted, kLarge };

// Tokens that the fullest expert probably has: the caller's hint, else an even split (prefix mode)
// or all that fits (padded mode). Only speed depends on it.
inline int64_t expected_tokens(const GroupGemmParams& params) {
  if (params.max_tokens >= 0) return params.max_tokens;
  if (params.tokens.padding > 0) return params.tokens.padding;
  return ceil_div(params.tokens.num_rows, std::max<int64_t>(params.tokens.experts, 1));
}

inline TileKind choose_tile(const GroupGemmParams& params) {
  const int64_t tokens = expected_tokens(params);
  if (tokens <= 16) return TileKind::kDecode;
  if (tokens <= 64) return TileKind::kSmall;
  const bool promoted = params.weight_format == WeightFormat::kInt4 &&
                        params.group_scale_type != GroupScaleType::kNone &&
                        params.group_size % kSubBlockIn != 0;
  if (promoted) return TileKind::kPromoted;
  return tokens <= 128 ? TileKind::kMedium : TileKind::kLarge;
}

}  // namespace w4afp8
