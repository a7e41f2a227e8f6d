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

// Tile shapes of the grouped GEMM, and what they do for which formats. Host-safe.
#pragma once

#include "grouped_gemm/params.h"

namespace w4afp8 {

constexpr int kMaxSharedBytes = 232448;  // of one block on sm_90: 227 KB

// The widths of a tile, the widest first: each tile is as narrow as holds its tokens.
template <int... kWidths>
struct Widths {
  static constexpr int kCount = sizeof...(kWidths);
  W4AFP8_HOST_DEVICE static constexpr int at(int index) {
    constexpr int kList[] = {kWidths...};
    return kList[index];
  }
  static constexpr bool has(int width) { return ((kWidths == width) || ...); }
  // The widest below a width; 0 if none is.
  W4AFP8_HOST_DEVICE static constexpr int below(int width) {
    int widest = 0;
    ((widest = kWidths < width && kWidths > widest ? kWidths : widest), ...);
    return widest;
  }
  // Boxes of tokens are whole rows of the swizzle, of each block of a cluster.
  static constexpr bool are_valid(int cluster) {
    bool valid = ((kWidths / cluster % 8 == 0) && ...);
    for (int i = 1; i < kCount; ++i) valid = valid && at(i) < at(i - 1);
    return valid;
  }
};

// The product runs transposed: outputs are the m of wgmma, 64 for each consumer warpgroup; tokens are
// its n.
template <int kConsumers_, class TileWidths, int kStages_, int kCluster_,
          int kThreeQuarterTiles_ = 0, bool kTurnsSums_ = false, bool kMayPause_ = false,
          bool kMayHelp_ = false>
struct TileShape {
  using Widths = TileWidths;
  static constexpr int kConsumers = kConsumers_;     // consumer warpgroups
  static constexpr int kTokens = TileWidths::at(0);  // tokens of a tile, at most
  static constexpr int kNarrowest = TileWidths::at(TileWidths::kCount - 1);
  // K blocks of 128 in flight, but see kDeepWidth and kMayHelp.
  static constexpr int kStages = kStages_;
  static constexpr int kCluster = kCluster_;  // blocks along out that share their tokens
  // A tile may have fewer sub-blocks: the warpgroups beyond them have nothing to do.
  static constexpr bool kVariesHeight = kConsumers == 4;
  // Of any number of sub-blocks, so that lower ones can even out the last wave. Tiles of few tokens
  // are read fastest from one band of the weight: they are 4, 2 or 1 high.
  static constexpr bool kAnyHeight = kVariesHeight && kTokens >= 64;
  // All tiles of an expert that has two, up to so many, may be three quarters as wide.
  static constexpr int kThreeQuarterTiles = kThreeQuarterTiles_;
  static constexpr int kThreeQuarters = kTokens / 4 * 3;
  // Where sums are turned, a width that is no multiple of 64 shares them, and the code of the epilogue, with the next
  // one, which is.
  W4AFP8_HOST_DEVICE static constexpr bool is_between(int width) {
    return kTurnsSums_ && width % 64 != 0;
  }
  // Tiles of the last wave may be halved along the tokens.
  static constexpr bool kSplits = kTokens == 256;
  // Reading weights binds narrow tiles whatever their width; wide ones with few tokens are another matter than those
  // with many (tile_plan.h).
  static constexpr bool kIsWide = kTokens >= 128;
  // Some may be in two parts, multiplied by different blocks (tile_plan.h).
  static constexpr bool kMayPause = kMayPause_;
  // Where a tile has one sub-block, all warpgroups multiply some of its k blocks (main_loop.cuh).
  static constexpr bool kMayHelp = kMayHelp_;
  static constexpr int kSubBlocks = kConsumers;
  static constexpr int kOut = 64 * kSubBlocks;
  // One more warpgroup: it takes four warps to give registers to the consumers, of which two or three have something to
  // do once the launch has begun.
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kThreads = kConsumerThreads + 128;
  static constexpr bool kMovesRegisters = kTokens >= 64;
  // Two fetch tiles: registers do not suffice for one thread that fetches weights and all the rest.
  static constexpr int kProducers = kConsumers == 4 ? 2 : 1;
  // Per-thread registers after the move. A block starts with 65536 / threads, rounded down to 8:
  // 168 * 384 >= 224 * 256 + 56 * 128, 96 * 640 >= 112 * 512 + 32 * 128.
  static constexpr int kConsumerRegisters = kConsumers == 4 ? 112 : 224;
  static constexpr int kProducerRegisters = kConsumers == 4 ? 32 : 56;
  // Tiles this wide or narrower have two k blocks in a stage: with one, too little is on its way to shared
  // memory, and what blocks of a cluster tell each other takes longer than what they multiply.
  static constexpr int kDeepWidth = kCluster > 1 ? kNarrowest : 0;
  // Sums, in halves, are turned around in shared memory; else outputs are.
  static constexpr bool kTurnsSums = kTurnsSums_;
  // Tokens that pass through the staging buffer of the epilogue at a time.
  static constexpr int kStagedTokens = kTurnsSums        ? 128
                                       : kConsumers == 2 ? 64
                                       : kTokens < 32    ? kTokens
                                                         : 32;

  static_assert(Widths::are_valid(kCluster) && kTokens <= 256 && !is_between(kNarrowest));
  static_assert(kThreeQuarterTiles == 0 || Widths::has(kThreeQuarters));
  static_assert(!kMayPause || (kIsWide && Widths::has(kThreeQuarters)));
  static_assert(!kMayHelp || (kConsumers == 4 && kTokens == 16 && kCluster == 1));
  static_assert(!kSplits || Widths::has(kTokens / 2));
  static_assert(kConsumers == 2 || kConsumers == 4, "register budgets are given for 2 and 4");
  static_assert(kSubBlockOut * kSubBlocks <= kBandOut,
                "a tile touches two bands of the weight at most");
  static_assert(kTokens % kStagedTokens == 0, "the epilogue takes whole chunks");
  static_assert(kStagedTokens % 16 == 0, "chunks are looked at by sixteens");
};

struct TileWidth {
  int index;   // among the tile's widths
  int tokens;  // the n of its wgmmas
};

// The narrowest that holds so many tokens.
template <class Tile, int kIndex = 0>
W4AFP8_HOST_DEVICE constexpr TileWidth width_of(int num_tokens) {
  if constexpr (kIndex + 1 < Tile::Widths::kCount) {
    constexpr int kNext = Tile::Widths::at(kIndex + 1);
    if (num_tokens <= kNext) return width_of<Tile, kIndex + 1>(num_tokens);
  }
  constexpr int kWidth = Tile::Widths::at(kIndex);
  return {kIndex, kWidth};
}

// consumers, widths, stages, cluster, tiles of three quarters, turned sums, may pause, may help
using TileDecode = TileShape<4, Widths<16>, 5, 1>;  // 256 x 16
// The same, but that tiles of one sub-block are helped.
using TileDecodeHelped = TileShape<4, Widths<16>, 5, 1, 0, false, false, true>;
using TileSmall = TileShape<4, Widths<64, 32, 16>, 5, 1>;  // 256 x 64
// From 64 tokens on a tile takes the longer the wider it is; narrower ones mostly wait for weights.
using MediumWidths = Widths<128, 112, 96, 80, 72, 64, 32, 16>;
using TileMedium = TileShape<4, MediumWidths, 5, 1>;  // 256 x 128
// For few tiles. Elsewhere the code that it has besides costs up to 1.3% (kernel-log.md, run 117).
using TileMediumInParts = TileShape<4, MediumWidths, 5, 1, 0, false, true>;
using LargeWidths = Widths<256, 192, 128, 64>;
using TileLarge = TileShape<2, LargeWidths, 4, 2, 3, true>;  // 128 x 256
// For formats with group scales: two whole tiles and a narrow one take less time than three of three quarters.
using TileLargeGrouped = TileShape<2, LargeWidths, 4, 2, 2, true>;
// For few tiles, as above: where none are in parts they take up to 0.4% longer (kernel-log.md, run 172). The widths
// between pay where k blocks are many: with few, code for them costs up to 2.3% (run 178).
using LongWidths = Widths<256, 224, 192, 160, 128, 64>;
using TileLargeInParts = TileShape<2, LongWidths, 4, 2, 3, true, true>;
using TileLargeGroupedInParts = TileShape<2, LongWidths, 4, 2, 2, true, true>;
// For gated activations, which mostly lose by sums that are turned.
using TileLargeRounded = TileShape<2, LargeWidths, 4, 2, 3>;
// For formats with group scales, as above, and carried sums.
using TileLargeGroupedRounded = TileShape<2, LargeWidths, 4, 2, 2>;
using TilePromoted = TileShape<2, Widths<128, 64>, 6, 1>;  // 128 x 128, sums in float32 fit

// Sums over in_features (sums.cuh).
enum class Summation {
  kHalves,    // of each k block, and of these, in halves
  kPromoted,  // of each k block or short group, and of these, in float32
  kCarried,   // in float32 accumulators, out of which most of a sum is carried from time to time
};

// How a format's group scales reach the sums.
enum class GroupScaling {
  kNone,    // there are none
  kFolded,  // in the fragments
  kScaled,  // sums are multiplied by them
};

// Whether tiles may be in two parts, multiplied by different blocks: what there is of a sum, halves without units of
// their own, then waits in its outputs, which are as many and as long.
template <class Tile, class Format>
constexpr bool kPauses = Tile::kMayPause && Format::kSummation == Summation::kHalves &&
                         Format::kGroupScaling != GroupScaling::kScaled && !Format::kIsGated;

// Whether all warpgroups multiply some of the k blocks of a tile of one sub-block: what they hand over are the sums of k
// blocks, in halves.
template <class Tile, class Format>
constexpr bool kHelps =
    Tile::kMayHelp && Format::kSummation == Summation::kHalves && !Format::kIsGated;

// int4 groups of one or two k steps.
W4AFP8_HOST_DEVICE bool has_short_groups(const GroupGemmParams& params) {
  return params.weight_format == WeightFormat::kInt4 &&
         params.group_scale_type != GroupScaleType::kNone && params.group_size % kSubBlockIn != 0;
}

// Where most of what moves is outputs, many times the 50 MB of L2, they leave it first, so that weights
// and activations stay.
W4AFP8_HOST_DEVICE bool streams_outputs(const GroupGemmParams& params) {
  constexpr int64_t kOutputs = 150000000;
  return params.in_features <= 256 && params.tokens.num_rows * params.out_features > kOutputs;
}

}  // namespace w4afp8
