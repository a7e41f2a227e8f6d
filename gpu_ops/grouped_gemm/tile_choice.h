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

// Which tile shape a launch has. Pure; host-safe.
#pragma once

#include <algorithm>
#include <type_traits>

#include "grouped_gemm/config.h"

namespace w4afp8 {

enum class TileKind : int32_t { kDecode, kSmall, kMedium, kLarge, kPromoted };

// How group scales reach the sums.
inline GroupScaling scaling_of(const GroupGemmParams& params) {
  if (params.weight_format == WeightFormat::kMxfp4) return GroupScaling::kFolded;
  return params.group_scale_type == GroupScaleType::kNone ? GroupScaling::kNone
                                                          : GroupScaling::kScaled;
}

// Halves are the fastest. Their error is small beside the rounding of bfloat16, not of float16.
inline Summation summation_of(const GroupGemmParams& params) {
  if (has_short_groups(params)) return Summation::kPromoted;
  if (params.accumulation == Accumulation::kFloat32) return Summation::kPromoted;
  if (params.accumulation == Accumulation::kHalf) return Summation::kHalves;
  if (params.out_type == DataType::kBFloat16) return Summation::kHalves;
  return scaling_of(params) == GroupScaling::kScaled ? Summation::kPromoted : Summation::kCarried;
}

// The share of a large tile's outputs that exist: two blocks of a cluster take 128 each.
inline double large_tile_use(const GroupGemmParams& params) {
  const int64_t outs = TileLarge::kOut * TileLarge::kCluster;
  return static_cast<double>(params.out_features) /
         static_cast<double>(ceil_div(params.out_features, outs) * outs);
}

// So many tokens are for medium tiles still, if large ones fit. Counts are seldom even, and an expert that does not fill
// its last tile loses less where that is narrow: below 256 tokens on average medium tiles take up to 20% less. With even
// counts of 144 to 224 they take up to 11% more, groups of int4 up to 7% more with counts proportional to 1 / rank^0.5
// too. From there on it depends on what large tiles gain where they are full: most with many in_features, least with sums
// to carry; outputs to gate and few in_features gain half a percent at best (kernel-log.md, runs 183 to 195).
inline int64_t most_medium_tokens(const GroupGemmParams& params) {
  const bool is_short = params.in_features < 4096;
  if (is_gated(params.activation)) return is_short ? INT64_MAX : 768;
  if (summation_of(params) != Summation::kHalves) return 768;
  const bool is_scaled = scaling_of(params) == GroupScaling::kScaled;
  return is_scaled || is_short ? 448 : 192;
}

inline TileKind choose_tile(const GroupGemmParams& params) {
  const int64_t tokens = params.tokens.expected_tokens(params.max_tokens);
  if (tokens <= 4) return TileKind::kDecode;  // no expert has many
  if (tokens <= 64) return TileKind::kSmall;
  if (summation_of(params) == Summation::kPromoted) return TileKind::kPromoted;
  // With few in_features the epilogue takes most of the time, of sums in float32 the more so: medium tiles have less.
  const bool is_long = summation_of(params) == Summation::kHalves ? params.in_features > 256
                                                                  : params.in_features >= 1024;
  // Large tiles dequantise once for 256 tokens, and MXFP4 takes more instructions for that.
  const bool is_mxfp4 = params.weight_format == WeightFormat::kMxfp4;
  const double least_use = is_mxfp4 && summation_of(params) == Summation::kHalves ? 0.8 : 0.9;
  const bool fits = is_long && large_tile_use(params) > least_use;
  return fits && tokens > most_medium_tokens(params) ? TileKind::kLarge : TileKind::kMedium;
}

// Whether decode tiles are those that may be helped: 8 and 9 k blocks gain little by it, so fewer are left without
// (kernel-log.md, run 140).
inline bool may_help(const GroupGemmParams& params) {
  return params.in_features >= 8 * kSubBlockIn;
}

// Whether there are so few tiles, if all were full, that the kernel for parts pays: four a block of medium ones, 16 a
// cluster of large ones (kernel-log.md, runs 117 and 173).
template <class Tile>
bool has_few_tiles(const GroupGemmParams& params, int multiprocessors) {
  constexpr int kMost = Tile::kCluster == 1 ? 4 : 16;
  const int64_t rows = params.tokens.expected_rows(params.max_tokens);
  const int64_t tiles = ceil_div(rows, int64_t{Tile::kTokens}) *
                        ceil_div(params.out_features, int64_t{Tile::kOut * Tile::kCluster});
  return tiles <= int64_t{kMost} * (multiprocessors / Tile::kCluster);
}

// Parts of a tile are long, as its sums go to memory and back: those of large tiles longer. Outputs are whole sub-blocks.
template <class Tile>
bool may_pause(const GroupGemmParams& params) {
  constexpr int64_t kLeast = (Tile::kCluster == 1 ? 16 : 32) * kSubBlockIn;
  return params.in_features >= kLeast && params.in_features <= int64_t{1} << 20 &&
         params.out_features % kSubBlockOut == 0;
}

// Calls `use` with the shape of medium tiles.
template <class Format, class Use>
auto with_medium_tile(const GroupGemmParams& params, int multiprocessors, const Use& use) {
  // Also where no tile pauses, as in_features are few, say: a layer's two products then have one kernel.
  if constexpr (kPauses<TileMediumInParts, Format>) {
    if (has_few_tiles<TileMediumInParts>(params, multiprocessors)) return use(TileMediumInParts{});
  }
  return use(TileMedium{});
}

// Calls `use` with the shape of large tiles.
template <class Format, class Use>
auto with_large_tile(const GroupGemmParams& params, int multiprocessors, const Use& use) {
  if constexpr (Format::kSummation != Summation::kHalves) {
    return use(TileLargeGroupedRounded{});
  } else {
    constexpr bool kHasGroups = Format::kGroupScaling != GroupScaling::kNone;
    if constexpr (Format::kIsGated) {
      return use(std::conditional_t<kHasGroups, TileLargeGroupedRounded, TileLargeRounded>{});
    } else {
      using InParts = std::conditional_t<kHasGroups, TileLargeGroupedInParts, TileLargeInParts>;
      if constexpr (kPauses<InParts, Format>) {
        if (may_pause<InParts>(params) && has_few_tiles<InParts>(params, multiprocessors)) {
          return use(InParts{});
        }
      }
      return use(std::conditional_t<kHasGroups, TileLargeGrouped, TileLarge>{});
    }
  }
}

// Calls `use` with the shape that a format has for this kind of tile, and returns what that does.
template <class Format, class Use>
auto with_tile(TileKind kind, const GroupGemmParams& params, int multiprocessors, const Use& use) {
  if (kind == TileKind::kDecode) {
    if constexpr (kHelps<TileDecodeHelped, Format>) {
      if (may_help(params)) return use(TileDecodeHelped{});
    }
    return use(TileDecode{});
  }
  if (kind == TileKind::kSmall) return use(TileSmall{});
  if constexpr (Format::kSummation == Summation::kPromoted) {
    return use(TilePromoted{});
  } else {
    if (kind == TileKind::kLarge) return with_large_tile<Format>(params, multiprocessors, use);
    return with_medium_tile<Format>(params, multiprocessors, use);
  }
}

}  // namespace w4afp8
