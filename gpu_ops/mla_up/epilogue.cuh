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

// From accumulators to output rows: round, transpose through shared memory (accumulators are
// [outputs, tokens], rows are [tokens, outputs]), store 16 bytes a thread.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "mla_up/weights.cuh"
#include "ptx/matrix.cuh"

namespace w4afp8 {

// Where activations and outputs together are more than these, 32 MB, outputs leave L2 (50 MB) first:
// the next operator could not find all of them there anyway, and this one finds its activations.
constexpr int64_t kMostKept = 1 << 24;

template <class Tile>
class MlaEpilogue {
 public:
  using Sums = float[Tile::kTokens / 2];

  __device__ MlaEpilogue(const MlaUpParams& params, uint8_t* staged)
      : params_(params), staged_(staged), thread_(threadIdx.x % 128) {}

  // Stores the outputs [out, out + 64) of the tokens from `first` on; kFloat8: `scales` are theirs.
  __device__ __forceinline__ void store(const Sums& sums, const MlaWeights<Tile>& weights,
                                        const float* scales, uint32_t first, uint32_t out) {
    uint8_t* staged = staged_ + buffer_ * Tile::kStagedBytes;
    const float residual[2] = {weights.residual(0), weights.residual(1)};
#pragma unroll
    for (int token = 0; token < Tile::kTokens; token += 16) {
      stage_16_tokens(sums, residual, scales, staged, token);
    }
    ptx::named_barrier_sync(1 + threadIdx.x / 128, 128);
    write_rows(staged, first, out);
    // The next buffer is free: whoever passed this barrier, or the block's of the next token tile, had
    // written its rows.
    buffer_ = (buffer_ + 1) % Tile::kStagedBuffers;
  }

 private:
  __device__ __forceinline__ static uint32_t round_pair(float first, float second) {
    if constexpr (Tile::kType == DataType::kBFloat16) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
      return *reinterpret_cast<const uint32_t*>(&pair);
    } else {
      const __half2 pair = __floats2half2_rn(first, second);
      return *reinterpret_cast<const uint32_t*>(&pair);
    }
  }

  // 16 tokens x 16 outputs of each warp: matrix i holds outputs + 8 * (i % 2), tokens + 8 * (i / 2).
  __device__ __forceinline__ void stage_16_tokens(const Sums& sums, const float (&residual)[2],
                                                  const float* scales, uint8_t* staged,
                                                  int token) const {
    uint32_t matrix[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = (token + i / 2 * 8) / 2 + i % 2 * 2;
      float y0 = sums[at], y1 = sums[at + 1];
      if constexpr (MlaWeights<Tile>::kIsRelative) y0 *= residual[i % 2], y1 *= residual[i % 2];
      if constexpr (Tile::kFloat8) {
        const float2 scale =
            *reinterpret_cast<const float2*>(scales + token + i / 2 * 8 + thread_ % 4 * 2);
        y0 *= scale.x, y1 *= scale.y;
      }
      matrix[i] = round_pair(y0, y1);
    }
    const uint32_t lane = thread_ % 32, warp = thread_ / 32;
    const uint32_t row = token + lane / 16 * 8 + lane % 8;
    ptx::stmatrix_x4_transposed(
        staged + row * Tile::kStagedRowBytes + warp * 32 + lane / 8 % 2 * 16, matrix);
  }

  // 64 outputs of a token are 8 threads' 16 bytes each; tokens past the last are not stored.
  __device__ __forceinline__ void write_rows(const uint8_t* staged, uint32_t first,
                                             uint32_t out) const {
    const uint32_t row = thread_ / 8, rows = static_cast<uint32_t>(params_.tokens) - first;
    const int64_t stride = params_.heads * params_.out_features;
    const int64_t numbers =
        params_.tokens * params_.heads * (params_.out_features + Tile::kInBlocks * 64);
    const bool streams = Tile::kStreams || (!Tile::kOneTile && numbers > kMostKept);
    uint16_t* destination = static_cast<uint16_t*>(params_.out) + (first + row) * stride +
                            blockIdx.y * params_.out_features + out + thread_ % 8 * 8;
#pragma unroll
    for (int i = 0; i < Tile::kTokens / 16; ++i) {
      if (i * 16 + row >= rows) break;
      const uint4 outputs = *reinterpret_cast<const uint4*>(
          staged + (i * 16 + row) * Tile::kStagedRowBytes + thread_ % 8 * 16);
      if (streams) {
        __stcs(reinterpret_cast<uint4*>(destination), outputs);
      } else {
        *reinterpret_cast<uint4*>(destination) = outputs;
      }
      destination += 16 * stride;
    }
  }

  const MlaUpParams& params_;
  uint8_t* staged_;  // of this warpgroup
  const uint32_t thread_;
  int buffer_ = 0;
};

}  // namespace w4afp8
