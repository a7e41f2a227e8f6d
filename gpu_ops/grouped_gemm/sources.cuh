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

// Where the weights and group scales of one tile lie in global memory, k block by k block, and how the producers
// (producer.cuh) copy them.
#pragma once

#include "grouped_gemm/dequant.cuh"
#include "ptx/bulk_copy.cuh"

namespace w4afp8 {

// Weights of one tile. Each k block is contiguous for all outputs of a band (weight_layout.h), and a
// tile touches two bands at most. With a gated activation it has two halves: that of the gates, which
// lies in one band, as pairs begin at a multiple of their number, and the other, which touches two at most.
// Places are in units of half a sub-block, 2 KB, as a last k block may be half a one.
template <class Tile, bool kIsGated>
struct WeightSource {
  static constexpr int kParts =
      (kIsGated ? 1 : 0) + ((kIsGated ? Tile::kVariesHeight : Tile::kAnyHeight) ? 2 : 1);
  static constexpr int kPerBand = kBandOut / kSubBlockOut;
  static constexpr int kHalf = static_cast<int>(kHalfBlockBytes);
  const uint8_t* const weight;
  int first[kParts];       // 2 KB in `weight`: weight_layout.h in 32 bits, 2^31 are 4 TB
  int stride[kParts];      // from one k block to the next
  uint32_t bytes[kParts];  // of a k block; 0 where the tile lies beyond the outputs (odd cluster)

  // `sub_blocks`: of an expert. `halves`: of a sub-block's outputs. `most`: sub-blocks of the tile.
  __device__ WeightSource(const uint8_t* weight, int sub_blocks, int halves, int expert,
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
      stride[part] = 2 * in_band;
      first[part] = (expert * sub_blocks + band_begin) * halves + 2 * (sub_block - band_begin);
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
        ptx::bulk_copy(destination, weight + int64_t{first[part]} * kHalf, bytes[part], full,
                       policy);
      }
      destination += bytes[part];
    }
  }

  // The same of a last k block that is half a one. Its sub-blocks go where those of whole ones would, so that who
  // multiplies need not know: behind them is what was there before. Any bits are finite codes, and the tokens that they
  // meet are zeros. `sub_block`, `sub_blocks`: what the constructor was given, once more, as no register is left.
  __device__ __forceinline__ void copy_halves(uint8_t* destination, uint64_t* full,
                                              ptx::CachePolicy policy, int sub_block,
                                              int sub_blocks) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      // Sub-blocks of the band before it.
      uint32_t before = part == 0 ? sub_block : 0;
      if (kIsGated && part <= 1) before = (sub_block + part * sub_blocks) / 2;
      const uint8_t* source =
          weight + int64_t{first[part] - static_cast<int>(before % kPerBand)} * kHalf;
#pragma unroll 1
      for (uint32_t copied = 0; copied < bytes[part]; copied += kSubBlockBytes) {
        ptx::bulk_copy(destination + copied, source + copied / 2, kHalf, full, policy);
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

}  // namespace w4afp8
