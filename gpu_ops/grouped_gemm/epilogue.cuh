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
#include <cuda_pipeline.h>

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
        shared_(shared),
        rank_(rank),
        thread_(threadIdx.x % 128),
        warpgroup_(threadIdx.x / 128) {}

  // Starts the copies of what the epilogue multiplies by and adds, so that nobody waits for memory
  // after the main loop and no register holds it meanwhile. The last barrier of `store` is behind
  // every thread's last look at what is overwritten.
  __device__ __forceinline__ void prefetch(const TileCoordinates& tile) const {
    const int64_t channels = int64_t{tile.expert} * params_.out_features;
    const int outs = Tile::kOutGroups * static_cast<int>(kSubBlockOut);
    for (int i = thread_; i < outs; i += 128) {
      const int out = first_out(tile, 0) + i;
      copy_or_zero(&shared_.out_scale[warpgroup_][i], params_.weight_scale + channels + out,
                   out < params_.out_features);
    }
    if (params_.bias != nullptr) {
      for (int i = 2 * thread_; i < outs; i += 256) {
        const int out = first_out(tile, 0) + i;
        copy_or_zero(&shared_.bias[warpgroup_][i],
                     static_cast<const uint16_t*>(params_.bias) + channels + out,
                     out < params_.out_features);
      }
    }
    if (params_.x_scale_mode != ActivationScaleMode::kNone) {
      const bool per_token = params_.x_scale_mode == ActivationScaleMode::kPerToken;
      for (int token = thread_; token < Tile::kTokens; token += 128) {
        copy_or_zero(&shared_.token_scale[warpgroup_][token],
                     params_.x_scale + (per_token ? tile.row_begin + token : 0),
                     token < tile.num_tokens);
      }
    }
    __pipeline_commit();
  }

  __device__ __forceinline__ void store(const TileCoordinates& tile, const Accumulators& sums) {
    __pipeline_wait_prior(0);
    sync();
#pragma unroll
    for (int m = 0; m < Tile::kOutGroups; ++m) {
      const Channels channels = load_channels(m);
#pragma unroll
      for (int chunk = 0; chunk < Tile::kTokens; chunk += Tile::kStagedTokens) {
        if (chunk >= tile.num_tokens) break;
#pragma unroll
        for (int token = 0; token < Tile::kStagedTokens; token += 16) {
          stage_16_tokens(channels, sums[m], chunk, token);
        }
        sync();
        write_rows(tile, first_out(tile, m), chunk);
        // The next buffer is free: whoever passed the barrier had written its rows.
        buffer_ = (buffer_ + 1) % Storage::kStagedBuffers;
      }
    }
  }

 private:
  // Of output rows g and g + 8 of a fragment.
  struct Channels {
    float scale[2], bias[2];
  };

  __device__ __forceinline__ Channels load_channels(int m) const {
    Channels channels;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = m * static_cast<int>(kSubBlockOut) + warp() * 16 + lane() / 4 + 8 * half;
      channels.scale[half] = shared_.out_scale[warpgroup_][i] * Format::kFactor;
      channels.bias[half] = params_.bias != nullptr ? bias_at(i) : 0.0f;
    }
    return channels;
  }

  // Asynchronous; zero where the source does not exist.
  template <class T>
  __device__ __forceinline__ static void copy_or_zero(T* shared, const void* source, bool exists) {
    __pipeline_memcpy_async(shared, exists ? source : nullptr, 4, exists ? 0 : 4);
  }

  __device__ __forceinline__ int lane() const { return thread_ % 32; }
  __device__ __forceinline__ int warp() const { return thread_ / 32; }

  // First of the 64 outputs of this warpgroup's fragment m.
  __device__ __forceinline__ int first_out(const TileCoordinates& tile, int m) const {
    return (tile.sub_block + rank_ * Tile::kSubBlocks + warpgroup_ * Tile::kOutGroups + m) *
           kSubBlockOut;
  }

  __device__ __forceinline__ float bias_at(int i) const {
    const uint16_t* bias = &shared_.bias[warpgroup_][i];
    return params_.out_type == DataType::kBFloat16
               ? __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(bias))
               : __half2float(*reinterpret_cast<const __half*>(bias));
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
  __device__ __forceinline__ void stage_16_tokens(const Channels& channels,
                                                  const float (&sums)[Tile::kTokens / 2], int chunk,
                                                  int token) {
    const bool scaled = params_.x_scale_mode != ActivationScaleMode::kNone;
    uint32_t matrix[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = chunk + token + i / 2 * 8;  // tokens of this matrix; this thread has two
      const float2 x = scaled ? *reinterpret_cast<const float2*>(
                                    &shared_.token_scale[warpgroup_][first + lane() % 4 * 2])
                              : make_float2(1.0f, 1.0f);
      const int half = i % 2;
      const float y0 = sums[first / 2 + half * 2], y1 = sums[first / 2 + half * 2 + 1];
      matrix[i] = round_pair(fmaf(y0, channels.scale[half] * x.x, channels.bias[half]),
                             fmaf(y1, channels.scale[half] * x.y, channels.bias[half]));
    }
    const int row = token + lane() / 16 * 8 + lane() % 8;
    ptx::stmatrix_x4_transposed(
        staged() + row * Storage::kStagedRowBytes + warp() * 32 + lane() / 8 % 2 * 16, matrix);
  }

  // 64 outputs of a token are 8 threads' 16 bytes each; what lies beyond the tile's tokens or the
  // outputs is not stored.
  __device__ __forceinline__ void write_rows(const TileCoordinates& tile, int out, int chunk) {
    const int first = out + thread_ % 8 * 8;
    if (first >= params_.out_features) return;
#pragma unroll
    for (int i = 0; i < Tile::kStagedTokens / 16; ++i) {
      const int token = i * 16 + thread_ / 8;
      if (chunk + token >= tile.num_tokens) break;
      const int64_t row = tile.row_begin + chunk + token;
      uint16_t* destination =
          static_cast<uint16_t*>(params_.out) + row * params_.out_features + first;
      *reinterpret_cast<uint4*>(destination) = *reinterpret_cast<const uint4*>(
          staged() + token * Storage::kStagedRowBytes + thread_ % 8 * 16);
    }
  }

  __device__ __forceinline__ uint8_t* staged() const { return shared_.staged[warpgroup_][buffer_]; }

  // Barrier of this warpgroup; id 0 is the block's.
  __device__ __forceinline__ void sync() const { ptx::named_barrier_sync(1 + warpgroup_, 128); }

  const GroupGemmParams& params_;
  Storage& shared_;
  const uint32_t rank_;
  const int thread_, warpgroup_;
  int buffer_ = 0;  // of the staging buffers
};

}  // namespace w4afp8
