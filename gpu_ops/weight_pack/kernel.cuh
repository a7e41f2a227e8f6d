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

// Packing and unpacking of one sub-block (64 outputs x 128 in_features, 4096 bytes, or half of it) by one block.
//
// 128 threads: thread t holds rows r and r + 8 of a 16-row stripe over one k step of 32 codes, so
// that every 32-bit word it builds is its own. Both sides of the shared buffer move 16 bytes a
// thread, coalesced.
#pragma once

#include <cuda_runtime.h>

#include "common/weight_layout.h"
#include "weight_pack/params.h"

namespace w4afp8 {

constexpr int kPackThreads = 128;
constexpr int kStepCodes = 32;  // codes along k that a thread holds of a row
constexpr int kSteps = kSubBlockIn / kStepCodes;
constexpr int kWordColumns = 4;  // codes along k of a row in one 32-bit word

// Which sub-block this thread block works on, and which of its codes this thread.
struct PackPlace {
  int64_t expert;
  int64_t sub;      // of 64 outputs
  int64_t k_block;  // of 128 in_features
  int row;          // first of the two rows inside the sub-block, the other is row + 8
  int k;            // first code inside the sub-block

  __device__ static PackPlace of_this_thread(const WeightLayout& layout) {
    const uint32_t k_blocks = static_cast<uint32_t>(layout.k_blocks());
    const uint32_t subs = static_cast<uint32_t>(layout.padded_out() / kSubBlockOut);
    const uint32_t block = blockIdx.x;  // fewer than 2^31
    const int pair = threadIdx.x / kSteps;
    const int step = threadIdx.x % kSteps;
    return {block / k_blocks / subs, block / k_blocks % subs, block % k_blocks,
            pair / 8 * 16 + pair % 8, step * kStepCodes};
  }

  __device__ int64_t packed_offset(const WeightLayout& layout) const {
    return expert * layout.expert_bytes() + layout.sub_block_offset(sub, k_block);
  }

  // 16-byte pieces of the sub-block.
  __device__ int pieces(const WeightLayout& layout) const {
    return static_cast<int>(layout.sub_block_bytes(k_block) / 16);
  }
};

// The 16 bytes of checkpoint codes of one of the thread's rows; nullptr in the padding.
template <typename Byte>
__device__ Byte* checkpoint_codes(Byte* codes, const WeightLayout& layout, const PackPlace& at,
                                  int row) {
  const int64_t out = at.sub * kSubBlockOut + row;
  const int64_t in = at.k_block * kSubBlockIn + at.k;
  if (out >= layout.out_features || in >= layout.in_features) return nullptr;
  return codes + ((at.expert * layout.out_features + out) * layout.in_features + in) / 2;
}

// Code `i` of the 32 whose nibbles are in `words`, low nibble first.
__device__ __forceinline__ uint32_t nibble(const uint32_t (&words)[4], int i) {
  return words[i / 8] >> (i % 8 * 4) & 15;
}

template <WeightFormat kFormat>
__global__ void __launch_bounds__(kPackThreads) pack_weight_kernel(WeightPackParams params) {
  __shared__ alignas(16) uint32_t packed[kSubBlockBytes / 4];
  const WeightLayout layout = {params.out_features, params.in_features};
  const PackPlace at = PackPlace::of_this_thread(layout);

  alignas(16) uint32_t codes[2][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint8_t* source = checkpoint_codes(params.codes, layout, at, at.row + 8 * half);
    if (source == nullptr) continue;
    *reinterpret_cast<uint4*>(codes[half]) = *reinterpret_cast<const uint4*>(source);
  }

#pragma unroll
  for (int first = 0; first < kStepCodes; first += kWordColumns) {
    uint32_t word = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kWordColumns; ++i) {
        word |= encode_code(kFormat, nibble(codes[half], first + i), half, i);
      }
    }
    packed[code_place(at.row, at.k + first).word / 4] = word;
  }
  __syncthreads();

  uint4* out = reinterpret_cast<uint4*>(params.packed + at.packed_offset(layout));
  const int pieces = at.pieces(layout);
  for (int i = threadIdx.x; i < pieces; i += kPackThreads) {
    out[i] = reinterpret_cast<const uint4*>(packed)[i];
  }
}

template <WeightFormat kFormat>
__global__ void __launch_bounds__(kPackThreads) unpack_weight_kernel(WeightPackParams params) {
  __shared__ alignas(16) uint32_t packed[kSubBlockBytes / 4];
  const WeightLayout layout = {params.out_features, params.in_features};
  const PackPlace at = PackPlace::of_this_thread(layout);

  const uint4* in = reinterpret_cast<const uint4*>(params.packed + at.packed_offset(layout));
  const int pieces = at.pieces(layout);
  for (int i = threadIdx.x; i < pieces; i += kPackThreads) {
    reinterpret_cast<uint4*>(packed)[i] = in[i];
  }
  __syncthreads();

  alignas(16) uint32_t codes[2][4] = {};
#pragma unroll
  for (int first = 0; first < kStepCodes; first += kWordColumns) {
    const uint32_t word = packed[code_place(at.row, at.k + first).word / 4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kWordColumns; ++i) {
        const uint32_t code = decode_code(kFormat, word, half, i);
        codes[half][(first + i) / 8] |= code << ((first + i) % 8 * 4);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint8_t* target = checkpoint_codes(params.codes, layout, at, at.row + 8 * half);
    if (target == nullptr) continue;
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(codes[half]);
  }
}

}  // namespace w4afp8
