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

// FP8 quantisation of one row by one thread block: largest magnitude, scale, conversion. Where the
// row comes from and where the bytes go is the caller's. Every operation is one IEEE float32
// operation that the compiler may not contract, so that the CPU gives the same bytes.
#pragma once

#include <cfloat>

#include "common/chunk.cuh"

namespace w4afp8 {

constexpr float kFp8Largest = 448.0f;  // of float8_e4m3fn
constexpr int kMaxRowThreads = 512;
constexpr int kHeldChunks = 4;  // chunks that a thread keeps in registers between the two passes

// Threads for one row: as many warps as have a chunk to hold.
inline int row_threads(int64_t features, int width) {
  const int64_t chunks = ceil_div(features, width);
  const int64_t threads = round_up(ceil_div(chunks, kHeldChunks), 32);
  return static_cast<int>(threads < 64 ? 64 : threads > kMaxRowThreads ? kMaxRowThreads : threads);
}

// Largest of the threads' non-negative values, in every thread. `shared` holds one word per warp
// and may be used again after the next barrier.
__device__ __forceinline__ float block_max(float value, uint32_t* shared) {
  // Non-negative floats order as their bits do.
  const uint32_t warp_max = __reduce_max_sync(0xFFFFFFFFu, __float_as_uint(value));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) shared[warp] = warp_max;
  __syncthreads();
  const int warps = blockDim.x / 32;
  return __uint_as_float(__reduce_max_sync(0xFFFFFFFFu, lane < warps ? shared[lane] : 0u));
}

template <int kWidth>
__device__ __forceinline__ float largest_magnitude(float so_far, const Chunk<kWidth>& chunk) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) so_far = fmaxf(so_far, fabsf(chunk.v[i]));  // skips NaN
  return so_far;
}

template <int kWidth>
__device__ __forceinline__ typename Word<kWidth>::Type quantise(const Chunk<kWidth>& chunk,
                                                                float inverse) {
  Chunk<kWidth> scaled;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) scaled.v[i] = __fmul_rn(chunk.v[i], inverse);
  return to_fp8(scaled);
}

// Quantises a row of `features` features (a multiple of kWidth) and returns its scale. load(i)
// gives features [i, i + kWidth) as a Chunk, and is called again for those that no register holds;
// store(i, bytes) writes their FP8 bytes. To be called once a launch, by all threads of a block of
// up to kMaxRowThreads.
template <int kWidth, typename Load, typename Store>
__device__ __forceinline__ float quantise_row(int64_t features, Load load, Store store) {
  __shared__ uint32_t max_of_warp[kMaxRowThreads / 32];
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kWidth;
  const int64_t stride = static_cast<int64_t>(blockDim.x) * kWidth;
  const int64_t first_unheld = first + kHeldChunks * stride;

  Chunk<kWidth> held[kHeldChunks] = {};
#pragma unroll
  for (int c = 0; c < kHeldChunks; ++c) {
    if (first + c * stride < features) held[c] = load(first + c * stride);
  }
  float largest = 0.0f;
#pragma unroll
  for (int c = 0; c < kHeldChunks; ++c) largest = largest_magnitude(largest, held[c]);
  for (int64_t i = first_unheld; i < features; i += stride) {
    largest = largest_magnitude(largest, load(i));
  }

  largest = block_max(largest, max_of_warp);
  const float scale = fmaxf(__fdiv_rn(largest, kFp8Largest), FLT_MIN);
  const float inverse = __frcp_rn(scale);

#pragma unroll
  for (int c = 0; c < kHeldChunks; ++c) {
    if (first + c * stride < features) store(first + c * stride, quantise(held[c], inverse));
  }
  for (int64_t i = first_unheld; i < features; i += stride) store(i, quantise(load(i), inverse));
  return scale;
}

}  // namespace w4afp8
