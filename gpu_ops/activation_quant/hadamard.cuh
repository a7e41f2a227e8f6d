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

#include "common/row_quant.cuh"

namespace w4afp8 {

constexpr int kHadamardWidth = kVectorWidth;  // features of a thread's chunk
constexpr int64_t kMaxHadamardFeatures = int64_t{kMaxRowThreads} * kHeldChunks * kHadamardWidth;

// A power of two, so that a block of the transform lies within what the threads hold of one chunk
// each, or is made of whole ones.
inline int hadamard_threads(int64_t features, int chunks_each) {
  const int least = row_threads(features, kHadamardWidth, chunks_each);
  int threads = 64;
  while (threads < least) threads *= 2;
  return threads;
}

struct HadamardStorage {
  // Two halves of every thread's chunk, apart, so that 16-byte accesses have no bank conflicts.
  float4 chunks[2][2][kMaxRowThreads];
};

class Hadamard {
 public:
  using Row = HeldRow<kHadamardWidth>;
  using Values = Chunk<kHadamardWidth>;

  __device__ Hadamard(HadamardStorage& storage, int64_t size)
      : storage_(storage), size_(static_cast<int>(size)) {
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

  // The lower of two features gets the sum, the upper one the difference.
  __device__ static float own_half(float mine, float other, bool is_upper) {
    return is_upper ? __fsub_rn(other, mine) : __fadd_rn(mine, other);
  }

  __device__ static void between_lanes(Values& chunk, int distance) {
    const bool is_upper = (threadIdx.x & distance) != 0;
#pragma unroll
    for (int j = 0; j < kHadamardWidth; ++j) {
      const float other = __shfl_xor_sync(0xFFFFFFFFu, chunk.v[j], distance);
      chunk.v[j] = own_half(chunk.v[j], other, is_upper);
    }
  }

  // Two halves of the storage take turns, so one barrier is enough.
  __device__ void between_warps(Values& chunk, int distance) {
    auto& shared = storage_.chunks[turn_];
    turn_ ^= 1;
    const int partner = static_cast<int>(threadIdx.x) ^ distance;
    const bool is_upper = (threadIdx.x & distance) != 0;
    float4* values = reinterpret_cast<float4*>(chunk.v);
    shared[0][threadIdx.x] = values[0];
    shared[1][threadIdx.x] = values[1];
    __syncthreads();
    const float4 others[2] = {shared[0][partner], shared[1][partner]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      values[half].x = own_half(values[half].x, others[half].x, is_upper);
      values[half].y = own_half(values[half].y, others[half].y, is_upper);
      values[half].z = own_half(values[half].z, others[half].z, is_upper);
      values[half].w = own_half(values[half].w, others[half].w, is_upper);
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

  HadamardStorage& storage_;
  int size_;
  float factor_;
  int turn_ = 0;
};

}  // namespace w4afp8
