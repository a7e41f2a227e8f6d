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

// The producer: one thread that walks the block's tiles and keeps the ring of stages full, a k block
// of packed weights, scales and tokens in each, with narrow tiles two. It runs ahead across tiles.
#pragma once

#include <type_traits>

#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/scheduler.cuh"
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
  const uint8_t* address[kParts];
  uint32_t k_stride[kParts];
  uint32_t bytes[kParts];  // of a k block; 0 where the tile lies beyond the outputs (odd cluster)

  // `sub_blocks`, `k_blocks`: of an expert. `most`: sub-blocks of the tile.
  __device__ WeightSource(const uint8_t* weight, int sub_blocks, int k_blocks, int expert,
                          int sub_block, int most) {
    int end = min(sub_block + most, sub_blocks);
    if constexpr (kIsGated) sub_block /= 2, end /= 2;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int band_begin = sub_block / kPerBand * kPerBand;
      const int in_band = min(kPerBand, sub_blocks - band_begin);
      const int count = min(end, band_begin + kPerBand) - sub_block;
      bytes[part] = count > 0 ? count * kSubBlockBytes : 0;
      k_stride[part] = in_band * kSubBlockBytes;
      // weight_layout.h in 32 bits: 2^31 sub-blocks of 4 KB are more than any memory.
      const int before = (expert * sub_blocks + band_begin) * k_blocks + sub_block - band_begin;
      address[part] = weight + int64_t{before} * kSubBlockBytes;
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
        ptx::bulk_copy(destination, address[part], bytes[part], full, policy);
      }
      destination += bytes[part];
    }
  }

  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int part = 0; part < kParts; ++part) address[part] += k_stride[part];
  }
};

// Group scales of one tile, walked k block by k block: rows of one group each, contiguous along out;
// with a gated activation in two pieces, as the weights.
template <class Tile, class Format>
struct ScaleSource {
  const uint8_t* address = nullptr;
  uint32_t row_stride = 0;
  // Of a row, or of each of its two pieces; 0 where there are no scales, or the tile lies beyond the outputs.
  uint32_t piece_bytes = 0;
  int rows_left;           // groups from `address` on
  int rows_per_block = 1;  // 128 / group_size where groups are shorter than a k block
  int blocks_per_row = 1;  // group_size / 128 where they are longer
  int block_in_row = 0;
  int shared_stride = 0;  // bytes between rows in shared memory

  __device__ ScaleSource(const GroupGemmParams& params, int k_blocks, int expert, int sub_block,
                         int sub_blocks) {
    const int bytes_per_out = params.group_scale_type == GroupScaleType::kBFloat16 ? 2 : 4;
    rows_left = k_blocks;
    if (params.group_scale_type == GroupScaleType::kNone) return;
    if constexpr (Format::kGroupScaling != GroupScaling::kFolded) {
      const int in_features = static_cast<int>(params.in_features);
      const int group_size = static_cast<int>(params.group_size);
      rows_left = in_features / group_size;
      rows_per_block = max(static_cast<int>(kSubBlockIn) / group_size, 1);
      blocks_per_row = max(group_size / static_cast<int>(kSubBlockIn), 1);
    }
    constexpr int kOuts = static_cast<int>(kSubBlockOut);
    const int out_features = static_cast<int>(params.out_features);
    row_stride = out_features * bytes_per_out;
    shared_stride = Tile::kOut * bytes_per_out;
    int begin = sub_block * kOuts, outs = min(sub_blocks * kOuts, out_features - begin);
    if constexpr (Format::kIsGated) outs /= 2, begin /= 2;
    piece_bytes = max(outs, 0) * bytes_per_out;
    // A group has 1 KB of weights or more, so that 2^31 are more than any memory.
    address = static_cast<const uint8_t*>(params.group_scale) +
              int64_t{expert * rows_left} * row_stride + begin * bytes_per_out;
  }

  __device__ __forceinline__ int rows() const {
    if constexpr (Format::kSummation != Summation::kPromoted) return 1;
    return min(rows_per_block, rows_left);
  }

  // Of a k block.
  __device__ __forceinline__ uint32_t total_bytes() const {
    return piece_bytes * rows() * (Format::kIsGated ? 2 : 1);
  }

  __device__ __forceinline__ void copy(uint8_t* destination, uint64_t* full,
                                       ptx::CachePolicy policy) const {
    if (piece_bytes == 0) return;
#pragma unroll 1  // as in load_tile
    for (int i = 0; i < rows(); ++i) {
      const uint8_t* source = address + int64_t{i} * row_stride;
      ptx::bulk_copy(destination + i * shared_stride, source, piece_bytes, full, policy);
      if constexpr (Format::kIsGated) {
        ptx::bulk_copy(destination + i * shared_stride + piece_bytes, source + row_stride / 2,
                       piece_bytes, full, policy);
      }
    }
  }

  __device__ __forceinline__ void advance() {
    if (++block_in_row < blocks_per_row) return;
    block_in_row = 0;
    address += int64_t{rows_per_block} * row_stride;
    rows_left -= rows_per_block;
  }
};

// Boxes of x as wide as tiles may be: one copy fetches a k block's tokens, or this block's share of them in a
// cluster. In the order of width_index.
template <class Tile>
struct TokenMaps {
  CUtensorMap of_width[kWidths<Tile>];
};

// No group scales.
struct NoScaleSource {
  __device__ NoScaleSource(const GroupGemmParams&, int, int, int, int) {}
  __device__ __forceinline__ uint32_t total_bytes() const { return 0; }
  __device__ __forceinline__ void copy(uint8_t*, uint64_t*, ptx::CachePolicy) const {}
  __device__ __forceinline__ void advance() {}
};

template <class Tile, class Format>
class Producer {
 public:
  using Storage = SharedStorage<Tile, Format>;
  using Scales =
      std::conditional_t<(Format::kScaleBytes > 0), ScaleSource<Tile, Format>, NoScaleSource>;

  __device__ Producer(const GroupGemmParams& params, const TokenMaps<Tile>& token_maps,
                      Storage& shared, uint32_t rank)
      : params_(params),
        token_maps_(token_maps),
        shared_(shared),
        rank_(rank),
        streams_(streams_outputs(params)),
        sub_blocks_(static_cast<int>(params.weight_layout().padded_out() / kSubBlockOut)),
        k_blocks_(static_cast<int>(ceil_div(params.in_features, kSubBlockIn))) {}

  __device__ void run(TileScheduler<Tile> scheduler) {
    TileCoordinates tile;
    while (scheduler.next(tile)) load_tile(tile);
    // A tile without tokens ends the list.
    ptx::mbarrier_wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
    shared_.tile[ring_.stage].num_tokens = 0;
    ptx::mbarrier_arrive(&shared_.full[ring_.stage]);
  }

 private:
  __device__ __forceinline__ void load_tile(const TileCoordinates& tile) {
    const int sub_block = tile.sub_block + rank_ * Tile::kSubBlocks;
    WeightSource<Tile, Format::kIsGated> weight(params_.weight, sub_blocks_, k_blocks_, tile.expert,
                                                sub_block, tile.sub_blocks);
    Scales scales(params_, k_blocks_, tile.expert, sub_block, tile.sub_blocks);
    // Weights are read once unless several token tiles share them.
    const auto policy = tile.alone ? ptx::CachePolicy::EVICT_FIRST : ptx::CachePolicy::EVICT_NORMAL;
    const int width = tile_width<Tile>(tile.num_tokens);
    const CUtensorMap* const map = &token_maps_.of_width[width_index<Tile>(tile.num_tokens)];
    const int first =
        Tile::kCluster == 1 ? 0 : rank_ * width / Tile::kCluster;  // of this block's tokens
    const uint32_t bytes = width * kSubBlockIn + weight.total_bytes();
    const auto load_block = [&](int k, int place) {
      uint64_t* full = &shared_.full[ring_.stage];
      weight.copy(shared_.weight_of(ring_.stage, place), full, policy);
      weight.advance();
      scales.copy(shared_.scale_of(ring_.stage, place), full, policy);
      scales.advance();
      load_tokens(shared_.tokens_of(ring_.stage, place, width) + first * kSubBlockIn, map,
                  tile.row_begin + first, k, full);
    };
#pragma unroll 1  // one thread waits here most of the time; unrolled it would spill
    for (int k = 0; k < k_blocks_; ++k) {
      ptx::mbarrier_wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);
      if (k == 0) shared_.tile[ring_.stage] = tile;
      const bool has_second = width <= Tile::kDeepWidth && k + 1 < k_blocks_;
      const uint32_t block_bytes = bytes + scales.total_bytes();
      ptx::mbarrier_arrive_expect(&shared_.full[ring_.stage],
                                  has_second ? 2 * block_bytes : block_bytes);
      load_block(k, 0);
      if constexpr (Tile::kDeepWidth > 0) {
        if (has_second) load_block(++k, 1);
      }
      ring_.advance();
    }
  }

  // Each block of the cluster sends its share to all of them. Tokens past the tile's end may be loaded: they
  // belong to accumulator columns nobody stores.
  __device__ __forceinline__ void load_tokens(uint8_t* destination, const CUtensorMap* map, int row,
                                              int k, uint64_t* full) {
    const int column = k * static_cast<int>(kSubBlockIn);
    // Every output block reads the tokens, so L2 keeps them longer; but not where outputs pass in bulk.
    const auto policy = streams_ ? ptx::CachePolicy::EVICT_NORMAL : ptx::CachePolicy::EVICT_LAST;
    if constexpr (Tile::kCluster == 1) {
      ptx::tensor_copy(destination, map, column, row, full, policy);
    } else {
      ptx::tensor_copy_multicast(destination, map, column, row, full, (1 << Tile::kCluster) - 1,
                                 policy);
    }
  }

  const GroupGemmParams& params_;
  const TokenMaps<Tile>& token_maps_;
  Storage& shared_;
  uint32_t rank_;
  const bool streams_;
  const int sub_blocks_, k_blocks_;  // of an expert
  RingPosition<Tile::kStages> ring_;
};

}  // namespace w4afp8
