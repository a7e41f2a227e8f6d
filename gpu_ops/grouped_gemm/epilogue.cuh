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
// memory (accumulators are [outputs, tokens], rows are [tokens, outputs]), store 16 bytes a thread. With
// a gated activation 32 of a warpgroup's outputs are gates, and the other 32 what these let through:
// they meet where rows are read out of shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include "common/gated.cuh"
#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/scheduler.cuh"
#include "ptx/matrix.cuh"

namespace w4afp8 {

template <class Tile, class Format>
class Epilogue {
 public:
  using Storage = SharedStorage<Tile, Format>;

  __device__ Epilogue(const GroupGemmParams& params, Storage& shared, uint32_t rank)
      : params_(params),
        shared_(shared),
        rank_(rank),
        thread_(threadIdx.x % 128),
        warpgroup_(threadIdx.x / 128) {
    // What no tile fetches stays as it is.
    if (params.bias == nullptr && thread_ < kSubBlockOut) bias()[thread_] = 0;
    if (params.x_scale_mode == ActivationScaleMode::kNone) {
      for (int token = thread_; token < Tile::kTokens; token += 128) token_scale()[token] = 1.0f;
    }
  }

  // Starts the copies of what the epilogue multiplies by and adds, so that nobody waits for memory
  // after the main loop and no register holds it meanwhile. The last barrier of `store` is behind
  // every thread's last look at what is overwritten.
  __device__ __forceinline__ void prefetch(const TileCoordinates& tile) const {
    const int64_t channels = int64_t{tile.expert} * params_.out_features;
    constexpr int kOuts = static_cast<int>(kSubBlockOut);
    if (thread_ < kOuts) {
      const int out = out_of(tile, thread_);
      copy_or_zero(&out_scale()[thread_], params_.weight_scale + channels + out,
                   out < params_.out_features);
    }
    if (params_.bias != nullptr && thread_ < kOuts / 2) {
      const int out = out_of(tile, 2 * thread_);
      copy_or_zero(&bias()[2 * thread_],
                   static_cast<const uint16_t*>(params_.bias) + channels + out,
                   out < params_.out_features);
    }
    if (params_.x_scale_mode != ActivationScaleMode::kNone) {
      const bool per_token = params_.x_scale_mode == ActivationScaleMode::kPerToken;
      for (int token = thread_; token < Tile::kTokens; token += 128) {
        copy_or_zero(&token_scale()[token],
                     params_.x_scale + (per_token ? tile.row_begin + token : 0),
                     token < tile.num_tokens);
      }
    }
    __pipeline_commit();
  }

  // Sets `sums`, which are zeros, to what the first part of the tile has stored.
  template <class Sums>
  __device__ __forceinline__ void resume(const TileCoordinates& tile, Sums& sums) const {
    constexpr int kPieces = Sums::kTokens / 16;
    uint4 pieces[kPieces];  // as in store_chunk
    const uint16_t* source = first_piece(tile, 0);
    const int tokens = tokens_of(tile, 0);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      pieces[i] = 16 * i < tokens ? __ldcg(reinterpret_cast<const uint4*>(source)) : uint4{};
      source += 16 * params_.out_features;
    }
    sync();
    for_each_chunk(tile, [&](int chunk, uint8_t* staged) {
      for_each_16_tokens(chunk, staged, [&](int first, uint8_t* rows) {
        *reinterpret_cast<uint4*>(piece_of(rows)) = pieces[first / 16];
      });
      sync();
      for_each_16_tokens(chunk, staged, [&](int first, uint8_t* rows) {
        ptx::ldmatrix_x4_transposed(sums.matrices(first), matrix_of(rows));
      });
    });
  }

  // Stores `sums` as they are, for `resume`.
  template <class Sums>
  __device__ __forceinline__ void pause(const TileCoordinates& tile, const Sums& sums) const {
    __pipeline_wait_prior(0);
    sync();
    for_each_chunk(tile, [&](int chunk, uint8_t* staged) {
      for_each_16_tokens(chunk, staged, [&](int first, uint8_t* rows) {
        ptx::stmatrix_x4_transposed(matrix_of(rows), sums.matrices(first));
      });
      sync();
      store_chunk(tile, chunk, staged, [](uint4* out, uint4 piece) { __stcg(out, piece); });
    });
    sync();  // all are stored
  }

  // Barrier of this warpgroup; id 0 is the block's.
  __device__ __forceinline__ void sync() const { ptx::named_barrier_sync(1 + warpgroup_, 128); }

  template <class Sums>
  __device__ __forceinline__ void store(const TileCoordinates& tile, const Sums& sums) const {
    __pipeline_wait_prior(0);
    sync();
    if (params_.out_type == DataType::kBFloat16) {
      store_as<__nv_bfloat16>(tile, sums);
    } else {
      store_as<__half>(tile, sums);
    }
  }

 protected:
  static constexpr int kChunks = Tile::kTokens / Tile::kStagedTokens;
  static constexpr int kGates = kSubBlockOut / 2;  // of a warpgroup's outputs

  // Of output rows g and g + 8 of a fragment.
  struct Channels {
    float scale[2], bias[2];
  };

  template <class Out, class Sums>
  __device__ __forceinline__ void store_as(const TileCoordinates& tile, const Sums& sums) const {
    static_assert(Storage::kStagedBuffers == (kChunks > 1 ? 2 : 1));
    Channels channels;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = warp() * 16 + lane() / 4 + 8 * half;
      channels.scale[half] = out_scale()[i] * (Format::kFactor * sums.unit(half));
      channels.bias[half] = to_float<Out>(bias()[i]);
    }
    const bool streams = streams_outputs(params_);
    for_each_chunk(tile, [&](int chunk, uint8_t* staged) {
      for_each_16_tokens(chunk, staged, [&](int first, uint8_t* rows) {
        stage_16_tokens<Out>(channels, sums, first, matrix_of(rows));
      });
      sync();
      if constexpr (Format::kIsGated) {
        if (params_.activation == Activation::kSwiglu) {
          store_gated<Out, Activation::kSwiglu>(tile, chunk, staged);
        } else {
          store_gated<Out, Activation::kSwigluOai>(tile, chunk, staged);
        }
      } else if (streams) {
        store_chunk(tile, chunk, staged, [](uint4* out, uint4 piece) { __stcs(out, piece); });
      } else {
        store_chunk(tile, chunk, staged, [](uint4* out, uint4 piece) { *out = piece; });
      }
    });
  }

  // Chunks take turns at two buffers: whoever passed a chunk's barrier is done with the chunk before.
  __device__ __forceinline__ uint8_t* staged_of(int chunk) const {
    return shared_.staged[warpgroup_][chunk % 2];
  }

  // Calls `visit` with each chunk that has tokens, and where it is staged.
  template <class Visit>
  __device__ __forceinline__ void for_each_chunk(const TileCoordinates& tile, Visit visit) const {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk * Tile::kStagedTokens >= tile.num_tokens) break;
      visit(chunk, staged_of(chunk));
    }
  }
  // Calls `visit` with the first of each 16 tokens of a chunk, and where their rows are staged.
  template <class Visit>
  __device__ __forceinline__ static void for_each_16_tokens(int chunk, uint8_t* staged,
                                                            Visit visit) {
#pragma unroll
    for (int token = 0; token < Tile::kStagedTokens; token += 16) {
      visit(chunk * Tile::kStagedTokens + token, staged + token * Storage::kStagedRowBytes);
    }
  }

  // Each thread has 16 bytes of every 16th row.
  template <class Store>
  __device__ __forceinline__ void store_chunk(const TileCoordinates& tile, int chunk,
                                              const uint8_t* staged, Store store) const {
    const int tokens = tokens_of(tile, chunk);
    uint16_t* destination = first_piece(tile, chunk);
    staged = piece_of(staged);
#pragma unroll
    for (int token = 0; token < Tile::kStagedTokens; token += 16) {
      if (token < tokens) {
        store(reinterpret_cast<uint4*>(destination),
              *reinterpret_cast<const uint4*>(staged + token * Storage::kStagedRowBytes));
      }
      destination += 16 * params_.out_features;
    }
  }

  // This thread's 16 bytes of the first of its rows of a chunk, and the tokens from there on.
  __device__ __forceinline__ uint16_t* first_piece(const TileCoordinates& tile, int chunk) const {
    const int64_t row = int64_t{tile.row_begin} + chunk * Tile::kStagedTokens + thread_ / 8;
    return static_cast<uint16_t*>(params_.out) + row * params_.out_features +
           out_of(tile, thread_ % 8 * 8);
  }
  __device__ __forceinline__ int tokens_of(const TileCoordinates& tile, int chunk) const {
    const bool exist = out_of(tile, thread_ % 8 * 8) < params_.out_features;
    return exist ? tile.num_tokens - chunk * Tile::kStagedTokens - thread_ / 8 : 0;
  }
  template <class Byte>
  __device__ __forceinline__ Byte* piece_of(Byte* staged) const {
    return staged + thread_ / 8 * Storage::kStagedRowBytes + thread_ % 8 * 16;
  }

  // Each thread makes 16 bytes of every 32nd row: 8 features.
  template <class Out, Activation kActivation>
  __device__ __forceinline__ void store_gated(const TileCoordinates& tile, int chunk,
                                              const uint8_t* staged) const {
    const int thread = made_here(thread_);
    const int64_t features = params_.out_features / 2;
    const int feature = out_of(tile, thread % 4 * 8);
    const int first = chunk * Tile::kStagedTokens + thread / 4;
    const int tokens = feature < features ? tile.num_tokens - first : 0;
    uint16_t* destination = static_cast<uint16_t*>(params_.out) +
                            (int64_t{tile.row_begin} + first) * features + feature;
    staged += thread / 4 * Storage::kStagedRowBytes + thread % 4 * 16;
#pragma unroll 1
    for (int token = 0; token < Tile::kStagedTokens && token < tokens; token += 32) {
      const uint4 gate = *reinterpret_cast<const uint4*>(staged);
      const uint4 up = *reinterpret_cast<const uint4*>(staged + kGates * sizeof(uint16_t));
      *reinterpret_cast<uint4*>(destination) = {
          gate_pair<Out, kActivation>(gate.x, up.x), gate_pair<Out, kActivation>(gate.y, up.y),
          gate_pair<Out, kActivation>(gate.z, up.z), gate_pair<Out, kActivation>(gate.w, up.w)};
      staged += 32 * Storage::kStagedRowBytes;
      destination += 32 * features;
    }
  }

  template <class Out, Activation kActivation>
  __device__ __forceinline__ static uint32_t gate_pair(uint32_t gate, uint32_t up) {
    return round_pair<Out>(
        gated<kActivation>(to_float<Out>(gate & 0xFFFF), to_float<Out>(up & 0xFFFF)),
        gated<kActivation>(to_float<Out>(gate >> 16), to_float<Out>(up >> 16)));
  }

  // 16 tokens x 16 outputs of each warp: matrix i holds outputs + 8 * (i % 2), tokens + 8 * (i / 2).
  template <class Out, class Sums>
  __device__ __forceinline__ void stage_16_tokens(const Channels& channels, const Sums& sums,
                                                  int first_token, uint8_t* staged) const {
    uint32_t matrix[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = first_token + i / 2 * 8;  // tokens of this matrix; this thread has two
      const int half = i % 2;
      const float2 x = *reinterpret_cast<const float2*>(&token_scale()[first + lane() % 4 * 2]);
      const float2 y = sums.pair(first, half);
      matrix[i] = round_pair<Out>(fmaf(y.x, channels.scale[half] * x.x, channels.bias[half]),
                                  fmaf(y.y, channels.scale[half] * x.y, channels.bias[half]));
    }
    ptx::stmatrix_x4_transposed(staged, matrix);
  }

  // What this lane gives the address of among 16 tokens.
  __device__ __forceinline__ uint8_t* matrix_of(uint8_t* staged) const {
    const int row = lane() / 16 * 8 + lane() % 8;
    return staged + row * Storage::kStagedRowBytes + warp() * 32 + lane() / 8 % 2 * 16;
  }

  template <class Out>
  __device__ __forceinline__ static float to_float(uint16_t bits) {
    return static_cast<float>(*reinterpret_cast<const Out*>(&bits));
  }

  template <class Out>
  __device__ __forceinline__ static uint32_t round_pair(float first, float second) {
    if constexpr (std::is_same_v<Out, __nv_bfloat16>) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
      return *reinterpret_cast<const uint32_t*>(&pair);
    } else {
      const __half2 pair = __floats2half2_rn(first, second);
      return *reinterpret_cast<const uint32_t*>(&pair);
    }
  }

  // Asynchronous; zero where the source does not exist.
  template <class T>
  __device__ __forceinline__ static void copy_or_zero(T* shared, const void* source, bool exists) {
    __pipeline_memcpy_async(shared, exists ? source : nullptr, 4, exists ? 0 : 4);
  }

  // The same number, but what follows from it is worked out where it stands: registers are short elsewhere.
  template <class T>
  __device__ __forceinline__ static T made_here(T number) {
    if constexpr (sizeof(T) == 8) {
      asm volatile("" : "+l"(number));
    } else {
      asm volatile("" : "+r"(number));
    }
    return number;
  }

  __device__ __forceinline__ int lane() const { return thread_ % 32; }
  __device__ __forceinline__ int warp() const { return thread_ / 32; }
  __device__ __forceinline__ float* token_scale() const { return shared_.token_scale[warpgroup_]; }
  __device__ __forceinline__ float* out_scale() const { return shared_.out_scale[warpgroup_]; }
  __device__ __forceinline__ uint16_t* bias() const { return shared_.bias[warpgroup_]; }

  // Output of a column of this warpgroup's 64: of a sub-block, or of a half of a pair of them, gates
  // first (see MainLoop::sub_block). No outputs are gates from stored_features() on.
  __device__ __forceinline__ int out_of(const TileCoordinates& tile, int column) const {
    const int sub_block = tile.sub_block + rank_ * Tile::kSubBlocks + warpgroup_;
    if constexpr (!Format::kIsGated) return sub_block * kSubBlockOut + column;
    const int feature =
        sub_block / 2 * static_cast<int>(kSubBlockOut) + warpgroup_ % 2 * kGates + column % kGates;
    return feature + (column < kGates ? 0 : static_cast<int>(params_.out_features / 2));
  }

  const GroupGemmParams& params_;
  Storage& shared_;
  const uint32_t rank_;
  const int thread_, warpgroup_;
};

}  // namespace w4afp8
