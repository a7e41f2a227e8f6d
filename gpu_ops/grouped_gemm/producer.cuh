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

// The producers: a thread of one or two warps, or four threads of each, that walk the block's tiles and keep the ring of
// stages full, a k block of packed weights, scales and tokens in each, with some narrow tiles two, of helped ones four.
// They run ahead across tiles.
#pragma once

#include <type_traits>

#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/scheduler.cuh"
#include "grouped_gemm/token_maps.h"
#include "ptx/bulk_copy.cuh"

namespace w4afp8 {

// Weights of one tile. Each k block is contiguous for all outputs of a band (weight_layout.h), and a
// tile touches two bands at most. With a gated activation it has two halves: that of the gates, which
// lies in one band, as pairs begin at a multiple of their number, and the other, which touches two at most.
template <class Tile, bool kIsGated>
struct WeightSource {
  static constexpr int kParts =
      (kIsGated ? 1 : 0) + ((kIsGated ? Tile::kVariesHeight : Tile::kAnyHeight) ? 2 : 1);
  static constexpr int kPerBand = kBandOut / kSubBlockOut;
  const uint8_t* const weight;
  int first
      [kParts];  // sub-block of 4 KB in `weight`: weight_layout.h in 32 bits, as 2^31 are more than
                 // any memory
  int stride[kParts];      // sub-blocks from one k block to the next
  uint32_t bytes[kParts];  // of a k block; 0 where the tile lies beyond the outputs (odd cluster)

  // `sub_blocks`, `k_blocks`: of an expert. `most`: sub-blocks of the tile.
  __device__ WeightSource(const uint8_t* weight, int sub_blocks, int k_blocks, int expert,
                          int sub_block, int most)
      : weight(weight) {
    int end = min(sub_block + most, sub_blocks);
    if constexpr (kIsGated) sub_block /= 2, end /= 2;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int band_begin = sub_block / kPerBand * kPerBand;
      const int in_band = min(kPerBand, sub_blocks - band_begin);
      const int count = min(end, band_begin + kPerBand) - sub_block;
      bytes[part] = count > 0 ? count * kSubBlockBytes : 0;
      stride[part] = in_band;
      first[part] = (expert * sub_blocks + band_begin) * k_blocks + sub_block - band_begin;
      if (kIsGated && part == 0) {
        sub_block += sub_blocks / 2, end += sub_blocks / 2;
      } else {
        sub_block = band_begin + kPerBand;
      }
    }
  }

  __device__ __forceinline__ uint32_t total_bytes() const {
    uint32_t total = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) total += bytes[part];
    return total;
  }

  __device__ __forceinline__ void copy(uint8_t* destination, uint64_t* full,
                                       ptx::CachePolicy policy) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (bytes[part] > 0) {
        ptx::bulk_copy(destination, weight + int64_t{first[part]} * kSubBlockBytes, bytes[part],
                       full, policy);
      }
      destination += bytes[part];
    }
  }

  __device__ __forceinline__ void advance(int k_blocks = 1) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) first[part] += k_blocks * stride[part];
  }
};

// Group scales of one tile, walked k block by k block: rows of one group each, contiguous along out;
// with a gated activation in two pieces, as the weights. What follows from the parameters is not held in registers.
template <class Tile, class Format>
struct ScaleSource {
  const GroupGemmParams& params;
  uint32_t first = 0;  // row of the tile, in steps of 16 bytes: outs are multiples of 8
  // Of a row, or of each of its two pieces; 0 where there are no scales, or the tile lies beyond the outputs.
  uint32_t piece_bytes = 0;
  int in_row = 0;  // in_features of the row that were walked

  __device__ ScaleSource(const GroupGemmParams& params, int k_blocks, int expert, int sub_block,
                         int sub_blocks)
      : params(params) {
    if (params.group_scale_type == GroupScaleType::kNone) return;
    const int rows = kIsFolded ? k_blocks : static_cast<int>(params.in_features) / group_size();
    constexpr int kOuts = static_cast<int>(kSubBlockOut);
    const int out_features = static_cast<int>(params.out_features);
    int begin = sub_block * kOuts, outs = min(sub_blocks * kOuts, out_features - begin);
    if constexpr (Format::kIsGated) outs /= 2, begin /= 2;
    piece_bytes = max(outs, 0) * bytes_per_out();
    // A group has 1 KB of weights or more, so that 2^31 are more than any memory.
    first = static_cast<uint32_t>((int64_t{expert * rows} * row_bytes() + begin * bytes_per_out()) /
                                  16);
  }

  // Of the k block at `column`.
  __device__ __forceinline__ uint32_t total_bytes(int column) const {
    return piece_bytes * rows(column) * (Format::kIsGated ? 2 : 1);
  }

  __device__ __forceinline__ void copy(int column, uint8_t* destination, uint64_t* full,
                                       ptx::CachePolicy policy) const {
    if (piece_bytes == 0) return;
#pragma unroll 1  // as in load_tile
    for (int i = 0; i < rows(column); ++i) {
      const uint8_t* const source = static_cast<const uint8_t*>(params.group_scale) +
                                    int64_t{16} * (first + i * (row_bytes() / 16));
      uint8_t* const row = destination + i * Tile::kOut * bytes_per_out();
      ptx::bulk_copy(row, source, piece_bytes, full, policy);
      if constexpr (Format::kIsGated) {
        ptx::bulk_copy(row + piece_bytes, source + row_bytes() / 2, piece_bytes, full, policy);
      }
    }
  }

  __device__ __forceinline__ void advance() {
    if constexpr (!kIsFolded) {
      in_row += static_cast<int>(kSubBlockIn);
      if (in_row < group_size()) return;
      in_row = 0;
    }
    first += rows(0) * (row_bytes() / 16);
  }

  // Of so many sub-blocks, of one row.
  __device__ __forceinline__ uint32_t bytes_of(int sub_blocks) const {
    return sub_blocks * static_cast<uint32_t>(kSubBlockOut) * bytes_per_out();
  }

  __device__ __forceinline__ void advance(int k_blocks) {
    if constexpr (kIsFolded) {
      first += k_blocks * (row_bytes() / 16);  // one row a k block
    } else {
#pragma unroll 1
      for (int i = 0; i < k_blocks; ++i) advance();
    }
  }

 private:
  static constexpr bool kIsFolded = Format::kGroupScaling == GroupScaling::kFolded;
  static constexpr bool kHasShortGroups = Format::kSummation == Summation::kPromoted && !kIsFolded;

  __device__ __forceinline__ int group_size() const { return static_cast<int>(params.group_size); }
  // Groups that begin in the k block at `column`, or the one that it is in.
  __device__ __forceinline__ int rows(int column) const {
    constexpr int kBlock = static_cast<int>(kSubBlockIn);
    if (!kHasShortGroups || group_size() >= kBlock) return 1;
    return min(static_cast<int>(params.in_features) - column, kBlock) >>
           (group_size() == 32 ? 5 : 6);
  }
  __device__ __forceinline__ uint32_t bytes_per_out() const {
    return params.group_scale_type == GroupScaleType::kBFloat16 ? 2 : 4;
  }
  __device__ __forceinline__ uint32_t row_bytes() const {
    return static_cast<uint32_t>(params.out_features) * bytes_per_out();
  }
};

// No group scales.
struct NoScaleSource {
  __device__ NoScaleSource(const GroupGemmParams&, int, int, int, int) {}
  __device__ __forceinline__ uint32_t total_bytes(int) const { return 0; }
  __device__ __forceinline__ uint32_t bytes_of(int) const { return 0; }
  __device__ __forceinline__ void copy(int, uint8_t*, uint64_t*, ptx::CachePolicy) const {}
  __device__ __forceinline__ void advance(int = 1) {}
};

// What a producer asks for: everything, or one weights and another one scales and tokens.
enum class Fetches { kAll, kWeights, kOthers };

template <class Tile, class Format, Fetches kFetches>
class Producer {
 public:
  using Storage = SharedStorage<Tile, Format>;

  __device__ Producer(const GroupGemmParams& params, const TokenMaps<Tile>& token_maps,
                      Storage& shared, uint32_t rank)
      : params_(params),
        token_maps_(token_maps),
        shared_(shared),
        rank_(rank),
        streams_(streams_outputs(params)) {}

  __device__ void run(TileScheduler<Tile> scheduler) {
    scheduler.wait_for_plan();
    stay_together();
    ask(scheduler);
    while (const TileCoordinates* tile = scheduler.next()) {
      stay_together();
      load_tile(*tile, scheduler);
    }
    wait_for_stage();  // consumers look at the end of the list too
    if (lane() == 0) ptx::mbarrier_arrive(full());
  }

 private:
  static constexpr bool kWeights = kFetches != Fetches::kOthers;
  static constexpr bool kOthers = kFetches != Fetches::kWeights;
  static constexpr int kBlock = static_cast<int>(kSubBlockIn);
  using WithScales =
      std::conditional_t<(Format::kScaleBytes > 0), ScaleSource<Tile, Format>, NoScaleSource>;
  using Scales = std::conditional_t<kOthers, WithScales, NoScaleSource>;

  __device__ __forceinline__ void load_tile(const TileCoordinates& tile,
                                            const TileScheduler<Tile>& scheduler) {
    const int k_blocks = static_cast<int>(ceil_div(params_.in_features, kSubBlockIn));
    const int sub_blocks = static_cast<int>(params_.weight_layout().padded_out() / kSubBlockOut);
    const int sub_block = tile.sub_block + rank_ * Tile::kSubBlocks;
    WeightSource<Tile, Format::kIsGated> weight(params_.weight, sub_blocks, k_blocks, tile.expert,
                                                sub_block, tile.sub_blocks);
    Scales scales(params_, k_blocks, tile.expert, sub_block, tile.sub_blocks);
    int column = 0, end = static_cast<int>(params_.in_features);
    if constexpr (kPauses<Tile, Format>) {
      column = tile.k_begin * kBlock;
      end = min(end, column + tile.k_blocks * kBlock);
      weight.advance(tile.k_begin);
      scales.advance(tile.k_begin);
    }
    // Weights are read once unless several token tiles share them.
    const auto policy = tile.alone ? ptx::CachePolicy::EVICT_FIRST : ptx::CachePolicy::EVICT_NORMAL;
    const TileWidth tile_width = width_of<Tile>(tile.num_tokens);
    const int width = tile_width.tokens;
    const CUtensorMap* const map = &token_maps_.of_width[tile_width.index];
    // Each block of the cluster copies its share of the tokens, to all of them.
    static_assert(Tile::kCluster <= 2);
    const int share = width / Tile::kCluster, first = rank_ * share;
    const int own = min(max(tile.num_tokens - first, 0), share);
    const int copied = tile.num_tokens > share ? width : share;
    ptx::TensorPlace tokens = {0, Tile::kTokens - own, tile.row_begin + first + own};  // TokenMaps
    const uint32_t bytes = (kWeights ? weight.total_bytes() : 0) +
                           (kOthers ? static_cast<uint32_t>(copied * kBlock) : 0);
    const bool is_helped = w4afp8::is_helped<Tile, Format>(tile);
    const int most_blocks = is_helped ? Storage::kHelpedBlocks : width <= Tile::kDeepWidth ? 2 : 1;
    // A helped tile's k blocks lie where a higher tile's sub-blocks do.
    const auto load_block = [&](int column, int place) {
      const int deep = kHelps<Tile, Format> ? 0 : place, sub_block = place - deep;
      if constexpr (kWeights) {
        weight.copy(shared_.weight_of(ring_.stage, deep) + sub_block * kSubBlockBytes, full(),
                    policy);
      }
      if constexpr (kOthers) {
        scales.copy(column, shared_.scale_of(ring_.stage, deep) + scales.bytes_of(sub_block),
                    full(), policy);
        tokens[0] = column;
        uint8_t* const destination = shared_.tokens_of(ring_.stage, place, width) + first * kBlock;
        if (Tile::kCluster == 1 || own > 0) load_tokens(destination, map, tokens);
      }
    };
    // The next tile is listed once both have asked for it: so many k blocks before the end of this one, that the
    // ring lasts until it is found, and not earlier, as another block may have nothing left before.
    constexpr int kAskedBefore = 8 * kBlock;
    const int asks =
        max(static_cast<int>(round_up(end, max(most_blocks, 2) * kBlock)) - kAskedBefore, column);
    if (!kWeights) ask(scheduler);
    const auto advance = [&](int k_blocks) {
      if constexpr (kWeights) weight.advance(k_blocks);
      if constexpr (kOthers) scales.advance(k_blocks);
    };
    if constexpr (kLanes > 1) advance(lane());
#pragma unroll 1  // the producer waits here most of the time; unrolled it would spill
    while (column < end) {
      if (kWeights && column == asks) ask(scheduler);
      wait_for_stage();
      stay_together();
      const int left = (end - column + kBlock - 1) / kBlock, blocks = min(most_blocks, left);
      if (lane() == 0) {
        ptx::mbarrier_arrive_expect(full(), blocks * (bytes + scales.total_bytes(column)));
      }
      if constexpr (kLanes > 1) {
        if (lane() < blocks) load_block(column + lane() * kBlock, lane());
        advance(most_blocks);
      } else {
        load_block(column, 0);
        advance(1);
        if constexpr (Tile::kDeepWidth > 0) {
          if (blocks > 1) {
            load_block(column + kBlock, 1);
            advance(1);
          }
        }
      }
      column += most_blocks * kBlock;
      ring_.advance();
    }
  }

  // Threads that fetch the same: where a stage has several k blocks, small ones, each has one of them.
  static constexpr int kLanes = Storage::kFetchingLanes;
  __device__ __forceinline__ static int lane() { return kLanes > 1 ? threadIdx.x % 32 : 0; }

  // Of these threads one arrives at barriers, and the others must see each of their phases too.
  __device__ __forceinline__ static void stay_together() {
    if constexpr (kLanes > 1) __syncwarp((1u << kLanes) - 1);
  }
  __device__ __forceinline__ static void ask(const TileScheduler<Tile>& scheduler) {
    if (lane() == 0) scheduler.ask();
  }

  // Until consumers have given it back.
  __device__ __forceinline__ void wait_for_stage() const {
    ptx::mbarrier_wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
  }

  __device__ __forceinline__ uint64_t* full() const { return &shared_.full[ring_.stage]; }

  __device__ __forceinline__ void load_tokens(uint8_t* destination, const CUtensorMap* map,
                                              const ptx::TensorPlace& place) const {
    // Every output block reads the tokens, so L2 keeps them longer; but not where outputs pass in bulk.
    const auto policy = streams_ ? ptx::CachePolicy::EVICT_NORMAL : ptx::CachePolicy::EVICT_LAST;
    if constexpr (Tile::kCluster == 1) {
      ptx::tensor_copy(ptx::shared_address(destination), map, place, full(), policy);
    } else {
      ptx::tensor_copy_multicast(ptx::shared_address(destination), map, place, full(),
                                 (1 << Tile::kCluster) - 1, policy);
    }
  }

  const GroupGemmParams& params_;
  const TokenMaps<Tile>& token_maps_;
  Storage& shared_;
  const uint32_t rank_;
  const bool streams_;
  RingPosition<Tile::kStages> ring_;
};

}  // namespace w4afp8
