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

// From accumulators to output rows: scale, bias and round in registers, transpose through shared
// memory (accumulators are [outputs, tokens], rows are [tokens, outputs]), store 16 bytes a thread.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "grouped_gemm/scheduler.cuh"
#include "ptx/stmatrix.cuh"

namespace w4afp8 {

template <class Tile, class Format>
class Epilogue {
 public:
  using Storage = SharedStorage<Tile, Format>;
  using Accumulators = float[Tile::kOutGroups][Tile::kTokens / 2];

  __device__ Epilogue(const GroupGemmParams& params, Storage& shared, uint32_t rank)
      : params_(params),
        rank_(rank),
        thread_(threadIdx.x % 128),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x % 128 / 32),
        warpgroup_(threadIdx.x / 128),
        staged_(shared.staged[threadIdx.x / 128]) {}

  __device__ __forceinline__ void store(const TileCoordinates& tile, Accumulators& sums) {
    const int block = tile.out_block * Tile::kCluster + rank_;
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
      const int out = block * Tile::kOut + (warpgroup_ * Tile::kOutGroups + m) * 64;
      const OutScales scales = load_scales(tile.expert, out + warp_ * 16 + lane_ / 4);
#pragma unroll
      for (int chunk = 0; chunk < Tile::kTokens; chunk += Tile::kStagedTokens) {
        if (chunk >= tile.num_tokens) break;
        sync();  // the rows of the chunk before have left the staging buffer
#pragma unroll
        for (int token = 0; token < Tile::kStagedTokens; token += 16) {
          stage_16_tokens(tile, sums[m], scales, chunk, token);
        }
        sync();
        write_rows(tile, out, chunk);
      }
    }
  }

 private:
  // Multiplier and bias of output rows g and g + 8.
  struct OutScales {
    float scale[2];
    float bias[2];
  };

  __device__ __forceinline__ OutScales load_scales(int expert, int out) const {
    OutScales result;
    const float tensor_scale = params_.x_scale_mode == ActivationScaleMode::kPerTensor
                                   ? params_.x_scale[0] * Format::kFactor
                                   : Format::kFactor;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool valid = out + 8 * half < params_.out_features;
      const int64_t index = expert * params_.out_features + out + 8 * half;
      result.scale[half] = valid ? params_.weight_scale[index] * tensor_scale : 0.0f;
      result.bias[half] = valid && params_.bias != nullptr ? bias_at(index) : 0.0f;
    }
    return result;
  }

  __device__ __forceinline__ float bias_at(int64_t index) const {
    if (params_.out_type == DataType::kBFloat16) {
      return __bfloat162float(static_cast<const __nv_bfloat16*>(params_.bias)[index]);
    }
    return __half2float(static_cast<const __half*>(params_.bias)[index]);
  }

  __device__ __forceinline__ float token_scale(const TileCoordinates& tile, int token) const {
    if (params_.x_scale_mode != ActivationScaleMode::kPerToken) return 1.0f;
    return token < tile.num_tokens ? params_.x_scale[tile.row_begin + token] : 0.0f;
  }

  __device__ __forceinline__ uint32_t round_pair(float first, float second) const {
    if (params_.out_type == DataType::kBFloat16) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
      return *reinterpret_cast<const uint32_t*>(&pair);
    }
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }

  // 16 tokens x 16 outputs of each warp: matrix i holds outputs + 8 * (i % 2), tokens + 8 * (i / 2).
  __device__ __forceinline__ void stage_16_tokens(const TileCoordinates& tile,
                                                  const float (&sums)[Tile::kTokens / 2],
                                                  const OutScales& scales, int chunk, int token) {
    uint32_t matrix[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = chunk + token + i / 2 * 8;  // tokens of this matrix
      const int pair = first + lane_ % 4 * 2;       // this thread's two tokens
      const int half = i % 2;
      const float x0 = token_scale(tile, pair), x1 = token_scale(tile, pair + 1);
      const float y0 = sums[first / 2 + half * 2], y1 = sums[first / 2 + half * 2 + 1];
      matrix[i] = round_pair(fmaf(y0, scales.scale[half] * x0, scales.bias[half]),
                             fmaf(y1, scales.scale[half] * x1, scales.bias[half]));
    }
    const int row = token + lane_ / 16 * 8 + lane_ % 8;
    ptx::stmatrix_x4_transposed(
        staged_ + row * Storage::kStagedRowBytes + warp_ * 32 + lane_ / 8 % 2 * 16, matrix);
  }

  // 64 outputs of a token are 8 threads' 16 bytes each; what lies beyond the tile's tokens or the
  // outputs is not stored.
  __device__ __forceinline__ void write_rows(const TileCoordinates& tile, int out, int chunk) {
    const int first_out = out + thread_ % 8 * 8;
    if (first_out >= params_.out_features) return;
    for (int token = thread_ / 8; token < Tile::kStagedTokens; token += 16) {
      if (chunk + token >= tile.num_tokens) break;
      const int64_t row = tile.row_begin + chunk + token;
      uint16_t* destination =
          static_cast<uint16_t*>(params_.out) + row * params_.out_features + first_out;
      *reinterpret_cast<uint4*>(destination) = *reinterpret_cast<const uint4*>(
          staged_ + token * Storage::kStagedRowBytes + thread_ % 8 * 16);
    }
  }

  // Barrier of this warpgroup; id 0 is the block's.
  __device__ __forceinline__ void sync() const { ptx::named_barrier_sync(1 + warpgroup_, 128); }

  const GroupGemmParams& params_;
  const uint32_t rank_;
  const int thread_, lane_, warp_, warpgroup_;
  uint8_t* const staged_;
};

}  // namespace w4afp8
