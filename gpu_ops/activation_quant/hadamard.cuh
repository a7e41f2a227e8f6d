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

// The orthonormal Walsh-Hadamard transform of the blocks of a row that a thread block holds. The
// butterflies go from neighbours to distant features, as on the CPU, each one IEEE addition and one
// subtraction, so that both give the same bits.
#pragma once

#include <algorithm>

#include "common/row_quant.cuh"

namespace w4afp8 {

constexpr int kHadamardWidth = kVectorWidth;  // features of a thread's chunk
constexpr int64_t kMaxHadamardFeatures = int64_t{kMaxRowThreads} * kHeldChunks * kHadamardWidth;

// Whole blocks of the transform lie within what the threads hold of one chunk each, or a block is
// made of a power of two of such whole layers.
inline int hadamard_threads(int64_t features, int64_t size, int chunks_each) {
  const int least = row_threads(features, kHadamardWidth, chunks_each);
  const int block_threads = std::max(static_cast<int>(size / kHadamardWidth), 32);
  if (block_threads <= least) return static_cast<int>(round_up(least, block_threads));
  int threads = 32;
  while (threads < least) threads *= 2;
  return threads;
}

// Of shared memory, for what warps tell each other: two rounds of one chunk a thread.
inline int hadamard_bytes(int64_t size, int threads) {
  const bool has_other_warps = size > 32 * kHadamardWidth && threads > 32;
  return has_other_warps ? 2 * threads * static_cast<int>(sizeof(Chunk<kHadamardWidth>)) : 0;
}

class Hadamard {
 public:
  using Row = HeldRow<kHadamardWidth>;
  using Values = Chunk<kHadamardWidth>;

  // `exchange` holds hadamard_bytes.
  __device__ Hadamard(float4* exchange, int64_t size)
      : exchange_(exchange), size_(static_cast<int>(size)) {
    factor_ = __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(size)));
  }

  // Transforms every `size` features of a row; `size` divides `features` and is at least
  // kHadamardWidth. All threads of the block call it.
  __device__ __forceinline__ void run(Row& row, int64_t features) {
    const int stride = static_cast<int>(Row::stride());
#pragma unroll
    for (int c = 0; c < kHeldChunks; ++c) {
      if (c * stride >= features) break;
      within_chunk(row.chunks[c]);
      for (int step = kHadamardWidth; step < min(size_, 32 * kHadamardWidth); step *= 2) {
        between_lanes(row.chunks[c], step / kHadamardWidth);
      }
      for (int step = 32 * kHadamardWidth; step < min(size_, stride); step *= 2) {
        between_warps(row.chunks[c], step / kHadamardWidth);
      }
    }
#pragma unroll
    for (int step = 1; step < kHeldChunks; step *= 2) {
      if (step * stride < size_) between_chunks(row, step);
    }
#pragma unroll
    for (int c = 0; c < kHeldChunks; ++c) {
#pragma unroll
      for (int j = 0; j < kHadamardWidth; ++j) {
        row.chunks[c].v[j] = __fmul_rn(row.chunks[c].v[j], factor_);
      }
    }
  }

 private:
  __device__ static void butterfly(float& a, float& b) {
    const float sum = __fadd_rn(a, b);
    b = __fsub_rn(a, b);
    a = sum;
  }

  __device__ static void within_chunk(Values& chunk) {
#pragma unroll
    for (int step = 1; step < kHadamardWidth; step *= 2) {
#pragma unroll
      for (int j = 0; j < kHadamardWidth; ++j) {
        if ((j & step) == 0) butterfly(chunk.v[j], chunk.v[j + step]);
      }
    }
  }

  // The lower of two features gets the sum, the upper one the difference, where its sign is -1:
  // products with 1 and -1 are exact, so this is one rounding.
  __device__ static float own_half(float mine, float other, float sign) {
    return __fmaf_rn(mine, sign, other);
  }

  __device__ static float sign_of(int distance) {
    return (threadIdx.x & distance) != 0 ? -1.0f : 1.0f;
  }

  __device__ static void between_lanes(Values& chunk, int distance) {
    const float sign = sign_of(distance);
#pragma unroll
    for (int j = 0; j < kHadamardWidth; ++j) {
      const float other = __shfl_xor_sync(0xFFFFFFFFu, chunk.v[j], distance);
      chunk.v[j] = own_half(chunk.v[j], other, sign);
    }
  }

  // Two rounds take turns with the memory, so one barrier is enough. A chunk's halves lie apart, so
  // that 16-byte accesses have no bank conflicts.
  __device__ void between_warps(Values& chunk, int distance) {
    float4* const lower = exchange_ + turn_ * 2 * blockDim.x;
    float4* const upper = lower + blockDim.x;
    turn_ ^= 1;
    const int partner = static_cast<int>(threadIdx.x) ^ distance;
    const float sign = sign_of(distance);
    float4* values = reinterpret_cast<float4*>(chunk.v);
    lower[threadIdx.x] = values[0];
    upper[threadIdx.x] = values[1];
    __syncthreads();
    const float4 others[2] = {lower[partner], upper[partner]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      values[half].x = own_half(values[half].x, others[half].x, sign);
      values[half].y = own_half(values[half].y, others[half].y, sign);
      values[half].z = own_half(values[half].z, others[half].z, sign);
      values[half].w = own_half(values[half].w, others[half].w, sign);
    }
  }

  __device__ static void between_chunks(Row& row, int step) {
#pragma unroll
    for (int c = 0; c < kHeldChunks; ++c) {
      if ((c & step) != 0) continue;
#pragma unroll
      for (int j = 0; j < kHadamardWidth; ++j) {
        butterfly(row.chunks[c].v[j], row.chunks[c + step].v[j]);
      }
    }
  }

  float4* exchange_;
  int size_;
  float factor_;
  int turn_ = 0;
};

}  // namespace w4afp8
