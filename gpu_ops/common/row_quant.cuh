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

// FP8 quantisation of rows by one thread block: largest magnitude, scale, conversion. Where a row
// comes from and where the bytes go is the caller's. Every operation is one IEEE float32 operation
// that the compiler may not contract, so that the CPU gives the same bytes.
#pragma once

#include <cfloat>

#include "common/chunk.cuh"

namespace w4afp8 {

constexpr float kFp8Largest = 448.0f;  // of float8_e4m3fn
constexpr int kMaxRowThreads = 512;
constexpr int kHeldChunks = 4;  // that a thread keeps in registers between the two passes, at most

// The larger of `so_far` and the magnitudes of a chunk; NaN does not count.
template <int kWidth>
__device__ __forceinline__ float larger_magnitude(float so_far, const Chunk<kWidth>& chunk) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) so_far = fmaxf(so_far, fabsf(chunk.v[i]));
  return so_far;
}

// Largest of a warp's non-negative values, in every lane: they order as their bits do.
__device__ __forceinline__ uint32_t warp_max_bits(float value) {
  return __reduce_max_sync(0xFFFFFFFFu, __float_as_uint(value));
}

__device__ __forceinline__ float row_scale(float largest) {
  return fmaxf(__fdiv_rn(largest, kFp8Largest), FLT_MIN);
}

// FP8 bytes of a chunk times 1 / scale.
template <int kWidth>
__device__ __forceinline__ typename Word<kWidth>::Type scaled(const Chunk<kWidth>& chunk,
                                                              float inverse) {
  Chunk<kWidth> product;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) product.v[i] = __fmul_rn(chunk.v[i], inverse);
  return to_fp8(product);
}

// Threads for one row where each is to hold `chunks_each` chunks.
inline int row_threads(int64_t features, int width, int chunks_each = kHeldChunks) {
  const int64_t chunks = ceil_div(features, width);
  const int64_t threads = round_up(ceil_div(chunks, chunks_each), 32);
  return static_cast<int>(threads > kMaxRowThreads ? kMaxRowThreads : threads);
}

// A thread's share of a row: chunk c holds the kWidth features from first_feature(c) on.
template <int kWidth, int kCount = kHeldChunks>
struct HeldRow {
  Chunk<kWidth> chunks[kCount];

  __device__ static int64_t stride() { return static_cast<int64_t>(blockDim.x) * kWidth; }
  __device__ static int64_t first_feature(int c) {
    return static_cast<int64_t>(threadIdx.x) * kWidth + c * stride();
  }
};

// load(i) gives features [i, i + kWidth) as a Chunk.
template <int kWidth, int kCount, typename Load>
__device__ __forceinline__ HeldRow<kWidth, kCount> hold_row(int64_t features, Load load) {
  HeldRow<kWidth, kCount> row = {};
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    const int64_t i = HeldRow<kWidth>::first_feature(c);
    if (i < features) row.chunks[c] = load(i);
  }
  return row;
}

// Shared memory of RowQuantiser.
struct RowStorage {
  uint32_t max_of_warp[2][kMaxRowThreads / 32];
};

// Quantises one row after the other. All threads of the block call it, up to kMaxRowThreads.
template <int kWidth>
class RowQuantiser {
 public:
  __device__ explicit RowQuantiser(RowStorage& storage) : storage_(storage) {}

  // Quantises a row of `features` features (a multiple of kWidth) and returns its scale. load(i) is
  // called again for those that `row` does not hold; store(i, bytes) writes their FP8 bytes.
  template <int kCount, typename Load, typename Store>
  __device__ __forceinline__ float run(const HeldRow<kWidth, kCount>& row, int64_t features,
                                       Load load, Store store) {
    const int64_t stride = HeldRow<kWidth>::stride();
    const int64_t first_unheld = HeldRow<kWidth>::first_feature(kCount);
    float largest = 0.0f;
#pragma unroll
    for (int c = 0; c < kCount; ++c) largest = larger_magnitude(largest, row.chunks[c]);
    for (int64_t i = first_unheld; i < features; i += stride) {
      largest = larger_magnitude(largest, load(i));
    }

    const float scale = row_scale(block_max(largest));
    const float inverse = __frcp_rn(scale);

#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const int64_t i = HeldRow<kWidth>::first_feature(c);
      if (i < features) store(i, scaled(row.chunks[c], inverse));
    }
    for (int64_t i = first_unheld; i < features; i += stride) store(i, scaled(load(i), inverse));
    return scale;
  }

 private:
  // Largest of the threads' non-negative values, in every thread. Rows take turns with two halves
  // of the storage, so one barrier a row is enough.
  __device__ __forceinline__ float block_max(float value) {
    uint32_t* shared = storage_.max_of_warp[turn_];
    turn_ ^= 1;
    const uint32_t warp_max = warp_max_bits(value);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) shared[warp] = warp_max;
    __syncthreads();
    const int warps = blockDim.x / 32;
    return __uint_as_float(__reduce_max_sync(0xFFFFFFFFu, lane < warps ? shared[lane] : 0u));
  }

  RowStorage& storage_;
  int turn_ = 0;
};

}  // namespace w4afp8
