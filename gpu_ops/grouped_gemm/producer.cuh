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

#include "common/grid_dependency.cuh"
#include "grouped_gemm/scheduler.cuh"
#include "grouped_gemm/sources.cuh"
#include "grouped_gemm/token_maps.h"
#include "ptx/bulk_copy.cuh"

namespace w4afp8 {

// What a producer asks for: everything, or one weights and another one scales and tokens.
enum class Fetches { kAll, kWeights, kOthers };

// In this order, as a layer's next launch relies on it.
__device__ __forceinline__ void wait_for_tokens() {
  wait_for_previous_grids();
  launch_dependents();
}

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
    if (kOthers && !kWaitsLate) wait_for_tokens();
    scheduler.wait_for_plan();
    stay_together();
    ask(scheduler);
    while (const TileCoordinates* tile = scheduler.next()) {
      stay_together();
      load_tile(*tile, scheduler);
    }
    if (kWaitsLate && !has_waited_) wait_for_tokens();
    wait_for_stage();  // consumers look at the end of the list too
    if (lane() == 0) ptx::mbarrier_arrive(full());
  }

 private:
  static constexpr bool kWeights = kFetches != Fetches::kOthers;
  static constexpr bool kOthers = kFetches != Fetches::kWeights;
  // The kernel before may still be writing tokens. A producer that fetches no weights waits for its end right before its
  // first copy, so that all that comes before that is done meanwhile: with 1 and 8 tokens layers take up to 4% less by it
  // (kernel-log.md, run 201). Where sums are promoted registers do not suffice.
  static constexpr bool kWaitsLate =
      kFetches == Fetches::kOthers && Format::kSummation != Summation::kPromoted;
  static constexpr int kBlock = static_cast<int>(kSubBlockIn);
  // Whether a last k block may be half a one: groups of 128 or more divide in_features.
  static constexpr bool kMayHalve = kWeights && (Format::kGroupScaling != GroupScaling::kScaled ||
                                                 Format::kSummation == Summation::kPromoted);
  using WithScales =
      std::conditional_t<(Format::kScaleBytes > 0), ScaleSource<Tile, Format>, NoScaleSource>;
  using Scales = std::conditional_t<kOthers, WithScales, NoScaleSource>;

  __device__ __forceinline__ void load_tile(const TileCoordinates& tile,
                                            const TileScheduler<Tile>& scheduler) {
    const int k_blocks = static_cast<int>(params_.weight_layout().k_blocks());
    const int halves = static_cast<int>(params_.weight_layout().padded_in() / kHalfBlockIn);
    const int sub_blocks = static_cast<int>(params_.weight_layout().padded_out() / kSubBlockOut);
    const int sub_block = first_sub_block(tile);
    WeightSource<Tile, Format::kIsGated> weight(params_.weight, sub_blocks, halves, tile.expert,
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
    const uint32_t weight_bytes = kWeights ? weight.total_bytes() : 0;
    const uint32_t bytes = weight_bytes + (kOthers ? static_cast<uint32_t>(copied * kBlock) : 0);
    const bool is_helped = w4afp8::is_helped<Tile, Format>(tile);
    const int most_blocks = is_helped ? Storage::kHelpedBlocks : width <= Tile::kDeepWidth ? 2 : 1;
    // A helped tile's k blocks lie where a higher tile's sub-blocks do.
    const auto load_block = [&](int column, int place, auto may_halve) {
      const int deep = kHelps<Tile, Format> ? 0 : place, own_place = place - deep;
      if constexpr (kWeights) {
        uint8_t* const destination =
            shared_.weight_of(ring_.stage, deep) + own_place * kSubBlockBytes;
        if (may_halve && is_half(column)) {
          weight.copy_halves(destination, full(), policy, first_sub_block(tile), sub_blocks);
        } else {
          weight.copy(destination, full(), policy);
        }
      }
      if constexpr (kOthers) {
        scales.copy(column, shared_.scale_of(ring_.stage, deep) + scales.bytes_of(own_place),
                    full(), policy);
        tokens[0] = column;
        uint8_t* const destination = shared_.tokens_of(ring_.stage, place, width) + first * kBlock;
        if (Tile::kCluster == 1 || own > 0) load_tokens(destination, map, tokens);
      }
    };
    // The next tile is listed once both have asked for it: so many k blocks before the end of this one, that the
    // ring lasts until it is found, and not earlier, as another block may have nothing left before.
    constexpr int kAskedBefore = 8 * kBlock;
    const int rest = static_cast<int>(round_up(end - column, max(most_blocks, 2) * kBlock));
    const int asks = column + max(rest - kAskedBefore, 0);
    if (!kWeights) ask(scheduler);
    const auto advance = [&](int k_blocks) {
      if constexpr (kWeights) weight.advance(k_blocks);
      if constexpr (kOthers) scales.advance(k_blocks);
    };
    if constexpr (kLanes > 1) advance(lane());
    const auto load_stage = [&](auto may_halve) {
      if (kWeights && column == asks) ask(scheduler);
      wait_for_stage();
      stay_together();
      const int left = (end - column + kBlock - 1) / kBlock, blocks = min(most_blocks, left);
      if (lane() == 0) {
        uint32_t expected = blocks * (bytes + scales.total_bytes(column));
        if (may_halve && is_half(column + (blocks - 1) * kBlock)) {
          expected -= weight_bytes / 2;
        }
        ptx::mbarrier_arrive_expect(full(), expected);
      }
      if constexpr (kLanes > 1) {
        if (lane() < blocks) load_block(column + lane() * kBlock, lane(), may_halve);
        advance(most_blocks);
      } else {
        load_block(column, 0, may_halve);
        advance(1);
        if constexpr (Tile::kDeepWidth > 0) {
          if (blocks > 1) {
            load_block(column + kBlock, 1, may_halve);
            advance(1);
          }
        }
      }
      column += most_blocks * kBlock;
      ring_.advance();
    };
    if (kWaitsLate && !has_waited_) {
      wait_for_tokens();
      has_waited_ = true;
    }
    // The producer waits here most of the time; unrolled it would spill.
    using MayHalve = std::bool_constant<kMayHalve>;
    if constexpr (kLanes == 1) {
#pragma unroll 1
      while (column < end) load_stage(MayHalve());
    } else {
      static_assert(!kPauses<Tile, Format>, "stages are counted from the first k block");
      // Decode tiles that may be helped take up to 3% longer where every stage asks whether it ends with half a k
      // block (kernel-log.md, run 159). So that stage is apart.
      const int last = (end - 1) / kBlock * kBlock, in_stage = most_blocks * kBlock;
      const int apart = kMayHalve && is_half(last) ? last / in_stage * in_stage : end;
#pragma unroll 1
      while (column < apart) load_stage(std::false_type());
      if (kMayHalve && column < end) load_stage(MayHalve());
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

  // Of this block of the cluster.
  __device__ __forceinline__ int first_sub_block(const TileCoordinates& tile) const {
    return tile.sub_block + rank_ * Tile::kSubBlocks;
  }

  // Whether the k block at `column` is the last one, and half a one.
  __device__ __forceinline__ bool is_half(int column) const {
    return WeightLayout::is_half(static_cast<int>(params_.in_features) - column);
  }

  // Until consumers have given it back.
  __device__ __forceinline__ void wait_for_stage() const {
    ptx::mbarrier_wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
  }

  __device__ __forceinline__ uint64_t* full() const { return &shared_.full[ring_.stage]; }

  __device__ __forceinline__ void load_tokens(uint8_t* destination, const CUtensorMap* map,
                                              const ptx::TensorPlace& place) const {
    // Every output block reads the tokens, so L2 keeps them longer; but not where outputs pass in bulk. Those of large
    // tiles do not (tile_choice.h). They choose all the same: if not, ptxas orders the products of int4's carried sums
    // otherwise, and 2048 tokens take 2% longer (kernel-log.md, run 191).
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
  bool has_waited_ = false;
};

}  // namespace w4afp8
