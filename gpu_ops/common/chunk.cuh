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

// A few neighbouring features of one row, as one thread holds them: float32 in registers, 16-byte
// (8-byte for FP8) accesses to memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "common/types.h"

namespace w4afp8 {

constexpr int kVectorWidth = 8;  // features of a chunk where rows_are_vectors, else 1

// True where every row begins at a multiple of 16 bytes and ends with a whole chunk.
inline bool rows_are_vectors(int64_t features, const void* a, const void* b) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b);
  return features % kVectorWidth == 0 && bits % 16 == 0;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Unsigned integer of kBytes bytes: what one access moves.
template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using Type = uint8_t;
};
template <>
struct Word<2> {
  using Type = uint16_t;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

template <int kWidth>
struct Chunk {
  float v[kWidth];
};

// Two neighbours of a 16-bit type in one word.
template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t word);
template <>
__device__ __forceinline__ float2 unpack<__half>(uint32_t word) {
  return __half22float2(reinterpret_cast<const __half2&>(word));
}
template <>
__device__ __forceinline__ float2 unpack<__nv_bfloat16>(uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xFFFF0000u));
}

// A chunk as it is stored: half the registers of the floats where T has 16 bits. Words, because the
// compiler would keep every 16-bit number in a register of its own.
template <int kWidth, typename T>
struct RawChunk {
  static constexpr int kBytes = kWidth * sizeof(T);
  static constexpr int kWords = kBytes < 4 ? 1 : kBytes / 4;
  uint32_t words[kWords] = {};

  __device__ __forceinline__ Chunk<kWidth> floats() const {
    Chunk<kWidth> chunk;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) chunk.v[i] = __uint_as_float(words[i]);
    } else if constexpr (kWidth == 1) {
      chunk.v[0] = unpack<T>(words[0]).x;
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const float2 pair = unpack<T>(words[i]);
        chunk.v[2 * i] = pair.x;
        chunk.v[2 * i + 1] = pair.y;
      }
    }
    return chunk;
  }
};

template <typename T>
struct PairOf;
template <>
struct PairOf<__half> {
  using Type = __half2;
};
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};

// The largest magnitude of some chunks of a 16-bit type; NaN does not count. Two features at once,
// and without floats that would have to be kept.
template <int kWidth, typename T, int kCount>
__device__ __forceinline__ float largest_magnitude(const RawChunk<kWidth, T> (&chunks)[kCount]) {
  using Raw = RawChunk<kWidth, T>;
  using Pair = typename PairOf<T>::Type;
  Pair largest = {from_float<T>(0.0f), from_float<T>(0.0f)};
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
#pragma unroll
    for (int i = 0; i < Raw::kWords; ++i) {
      largest = __hmax2(largest, __habs2(reinterpret_cast<const Pair&>(chunks[c].words[i])));
    }
  }
  return fmaxf(to_float(largest.x), to_float(largest.y));
}

// How caches take a read.
enum class Access {
  kNormal,
  kOnce,    // nobody reads it again: it need not stay in L2
  kPastL1,  // before the wait (grid_dependency.cuh): L1 may still have what was there earlier
};

template <Access kAccess, typename Word>
__device__ __forceinline__ Word load_word(const Word* x) {
  if constexpr (kAccess == Access::kOnce) return __ldcs(x);
  if constexpr (kAccess == Access::kPastL1) return __ldcg(x);
  return *x;
}

// Reads kWidth features; `x` is aligned to all of them (to 16 bytes if they are more).
template <int kWidth, Access kAccess = Access::kNormal, typename T>
__device__ __forceinline__ RawChunk<kWidth, T> load_raw(const T* x) {
  using Raw = RawChunk<kWidth, T>;
  Raw raw;
  if constexpr (Raw::kBytes >= 16) {
#pragma unroll
    for (int i = 0; i < Raw::kWords; i += 4) {
      const uint4 four = load_word<kAccess>(reinterpret_cast<const uint4*>(x) + i / 4);
      raw.words[i] = four.x;
      raw.words[i + 1] = four.y;
      raw.words[i + 2] = four.z;
      raw.words[i + 3] = four.w;
    }
  } else {
    raw.words[0] = load_word<kAccess>(reinterpret_cast<const typename Word<Raw::kBytes>::Type*>(x));
  }
  return raw;
}

template <int kWidth, Access kAccess = Access::kNormal, typename T>
__device__ __forceinline__ Chunk<kWidth> load_chunk(const T* x) {
  return load_raw<kWidth, kAccess>(x).floats();
}

// Rounds to T (to nearest even) and writes.
template <int kWidth, typename T>
__device__ __forceinline__ void store_chunk(T* x, const Chunk<kWidth>& chunk) {
  using Access = typename Word<kWidth * sizeof(T)>::Type;
  union {
    Access word;
    T values[kWidth];
  } raw = {};
#pragma unroll
  for (int i = 0; i < kWidth; ++i) raw.values[i] = from_float<T>(chunk.v[i]);
  *reinterpret_cast<Access*>(x) = raw.word;
}

// Rounds to float8_e4m3fn: to nearest even, saturating at 448, NaN as 0x7F.
template <int kWidth>
__device__ __forceinline__ typename Word<kWidth>::Type to_fp8(const Chunk<kWidth>& chunk) {
  if constexpr (kWidth == 1) {
    return __nv_cvt_float_to_fp8(chunk.v[0], __NV_SATFINITE, __NV_E4M3);
  } else {
    union {
      typename Word<kWidth>::Type word;
      uint16_t pairs[kWidth / 2];
    } raw = {};
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) {
      const float2 pair = make_float2(chunk.v[2 * i], chunk.v[2 * i + 1]);
      raw.pairs[i] = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
    }
    return raw.word;
  }
}

template <int kWidth>
__device__ __forceinline__ void store_fp8(uint8_t* out, typename Word<kWidth>::Type bytes) {
  *reinterpret_cast<typename Word<kWidth>::Type*>(out) = bytes;
}

}  // namespace w4afp8
