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

// The epilogue of tiles whose threads have registers enough for eight rows at once: sums, in halves, are
// turned around in shared memory as they are; the thread that stores 16 bytes scales, biases and rounds
// them. So it waits for shared memory twice a tile instead of every 16 tokens. A first part's sums are stored and loaded
// by the same rows.
#pragma once

#include <type_traits>

#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/epilogue.cuh"

namespace w4afp8 {

template <class Tile, class Format>
class TurnedEpilogue : public Epilogue<Tile, Format> {
  static_assert(!Format::kIsGated && Format::kSummation == Summation::kHalves);
  using Base = Epilogue<Tile, Format>;
  using Base::bias;
  using Base::lane;
  using Base::made_here;
  using Base::out_of;
  using Base::out_scale;
  using Base::params_;
  using Base::shared_;
  using Base::sync;
  using Base::thread_;
  using Base::token_scale;
  using Base::warp;
  using Base::warpgroup_;

 public:
  using Base::Base;
  using typename Base::Storage;

  // Stores `sums` as they are, for `resume`.
  template <class Sums>
  __device__ __forceinline__ void pause(const TileCoordinates& tile, const Sums& sums) const {
    __pipeline_wait_prior(0);
#pragma unroll
    for (int first = 0; first < Sums::kTokens; first += Tile::kStagedTokens) {
      if (first >= tile.num_tokens) break;
      stage(sums, first);
      sync();
      for_each_row<Sums>(tile, first, [](int, uint4* out, bool exists, const uint4* staged) {
        if (exists) __stcg(out, *staged);
      });
      sync();
    }
  }

  // Sets `sums`, which are zeros, to what the first part of the tile has stored.
  template <class Sums>
  __device__ __forceinline__ void resume(const TileCoordinates& tile, Sums& sums) const {
#pragma unroll
    for (int first = 0; first < Sums::kTokens; first += Tile::kStagedTokens) {
      uint4 pieces[kRows];
      for_each_row<Sums>(tile, first, [&](int i, const uint4* out, bool exists, uint4*) {
        pieces[i] = exists ? __ldcg(out) : uint4{};
      });
      for_each_row<Sums>(tile, first,
                         [&](int i, const uint4*, bool, uint4* staged) { *staged = pieces[i]; });
      sync();
      for_each_16_tokens<Sums>(first, [&](int token, uint8_t* staged) {
        ptx::ldmatrix_x4_transposed(sums.matrices(token), staged);
      });
      sync();
    }
  }

  template <class Sums>
  __device__ __forceinline__ void store(const TileCoordinates& tile, const Sums& sums) const {
    if (params_.out_type == DataType::kBFloat16) {
      store_as<__nv_bfloat16>(tile, sums);
    } else {
      store_as<__half>(tile, sums);
    }
  }

 private:
  // Of this thread's eight outputs.
  struct EightChannels {
    float scale[8], bias[8];
  };

  template <class Out, class Sums>
  __device__ __forceinline__ void store_as(const TileCoordinates& tile, const Sums& sums) const {
    constexpr bool kHasUnits = Format::kGroupScaling == GroupScaling::kScaled;
    EightChannels channels;
#pragma unroll
    for (int first = 0; first < Sums::kTokens; first += Tile::kStagedTokens) {
      if (first >= tile.num_tokens) break;
      stage(sums, first);
      if (first == 0) {
        if (kHasUnits && lane() % 4 == 0) {
          float* const unit = units() + warp() * 16 + lane() / 4;
          unit[0] = sums.unit(0), unit[8] = sums.unit(1);
        }
        __pipeline_wait_prior(0);
      }
      sync();
      if (first == 0) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float unit = kHasUnits ? units()[column() + i] : sums.unit(0);
          channels.scale[i] = out_scale()[column() + i] * (Format::kFactor * unit);
          channels.bias[i] = Base::template to_float<Out>(bias()[column() + i]);
        }
      }
      round_rows<Out, Sums>(tile, first, channels);
      sync();
    }
  }

  // Matrix i of 16 tokens x 16 outputs of each warp holds outputs + 8 * (i % 2), tokens + 8 * (i / 2).
  template <class Sums>
  __device__ __forceinline__ void stage(const Sums& sums, int first) const {
    for_each_16_tokens<Sums>(first, [&](int token, uint8_t* staged) {
      ptx::stmatrix_x4_transposed(staged, sums.matrices(token));
    });
  }

  // Calls `visit` with the first of each 16 tokens of the chunk that begins at `first`, and where this lane's matrix row
  // of them is staged.
  template <class Sums, class Visit>
  __device__ __forceinline__ void for_each_16_tokens(int first, Visit visit) const {
#pragma unroll
    for (int token = 0; token < Tile::kStagedTokens; token += 16) {
      if (first + token >= Sums::kTokens) break;
      visit(first + token, staged_matrix() + token * Storage::kStagedRowBytes);
    }
  }

  // What this lane gives the address of among the first 16 tokens.
  __device__ __forceinline__ uint8_t* staged_matrix() const {
    const int thread = made_here(thread_), lane = thread % 32, warp = thread / 32;
    const int row = lane / 16 * 8 + lane % 8;
    return shared_.staged[warpgroup_][0] + row * Storage::kStagedRowBytes +
           swizzled(warp * 2 + lane / 8 % 2, row);
  }

  static constexpr int kStep = 16, kRows = Tile::kStagedTokens / kStep;

  // Each thread has 16 bytes of every 16th row: calls `visit` with the row's index, where the bytes are stored, whether
  // that exists, and where they are staged.
  template <class Sums, class Visit>
  __device__ __forceinline__ void for_each_row(const TileCoordinates& tile, int first,
                                               Visit visit) const {
    const int64_t features = made_here(params_.out_features);
    const int thread = made_here(thread_);
    const int column = thread % 8 * 8, row = thread / 8;
    const int out = out_of(tile, column);
    const int tokens = out < features ? tile.num_tokens - first - row : 0;
    uint16_t* destination = static_cast<uint16_t*>(params_.out) +
                            (int64_t{tile.row_begin} + first + row) * features + out;
    uint8_t* const staged =
        shared_.staged[warpgroup_][0] + row * Storage::kStagedRowBytes + swizzled(column / 8, row);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first + i * kStep >= Sums::kTokens) break;
      visit(i, reinterpret_cast<uint4*>(destination), i * kStep < tokens,
            reinterpret_cast<uint4*>(staged + i * kStep * Storage::kStagedRowBytes));
      destination += kStep * features;
    }
  }

  // Bytes from the begin of a row to 16 of them, so that those of a column of rows meet all banks.
  __device__ __forceinline__ static int swizzled(int piece, int row) {
    return (piece ^ row % 8) * 16;
  }

  template <class Out, class Sums>
  __device__ __forceinline__ void round_rows(const TileCoordinates& tile, int first,
                                             const EightChannels& channels) const {
    const float* const token_scales = token_scale() + first + made_here(thread_) / 8;
    uint4 sums[kRows];
    float scale[kRows];
    for_each_row<Sums>(tile, first, [&](int i, const uint4*, bool, const uint4* staged) {
      sums[i] = *staged;
      scale[i] = token_scales[i * kStep];
    });
    for_each_row<Sums>(tile, first, [&](int i, uint4* out, bool exists, const uint4*) {
      const uint4 rounded = {round_two<Out>(sums[i].x, scale[i], channels, 0),
                             round_two<Out>(sums[i].y, scale[i], channels, 2),
                             round_two<Out>(sums[i].z, scale[i], channels, 4),
                             round_two<Out>(sums[i].w, scale[i], channels, 6)};
      if (exists) *out = rounded;
    });
  }

  // Outputs `i` and `i` + 1 of one token.
  template <class Out>
  __device__ __forceinline__ static uint32_t round_two(uint32_t halves, float token_scale,
                                                       const EightChannels& channels, int i) {
    const float2 y = __half22float2(*reinterpret_cast<const __half2*>(&halves));
    return Base::template round_pair<Out>(
        fmaf(y.x, channels.scale[i] * token_scale, channels.bias[i]),
        fmaf(y.y, channels.scale[i + 1] * token_scale, channels.bias[i + 1]));
  }

  __device__ __forceinline__ float* units() const { return out_scale() + kSubBlockOut; }

  // The first of the eight outputs that this thread stores, of its warpgroup's.
  __device__ __forceinline__ int column() const { return thread_ % 8 * 8; }
};

template <class Tile, class Format>
using EpilogueOf =
    std::conditional_t<Tile::kTurnsSums, TurnedEpilogue<Tile, Format>, Epilogue<Tile, Format>>;

}  // namespace w4afp8
