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

// How fast device memory can be read: bulk copies to shared memory by every multiprocessor, many in
// flight, nothing done with what arrives. Built and called by ceilings.py.
#include <cuda_runtime.h>

#include "common/device.h"
#include "ptx/bulk_copy.cuh"

namespace {

constexpr int kPieceBytes = 16384;
constexpr int kPieces = 12;  // in flight per multiprocessor

__global__ void __launch_bounds__(32, 1) bulk_read_kernel(const uint8_t* data, int64_t pieces) {
  extern __shared__ __align__(128) uint8_t ring[];
  __shared__ uint64_t arrived[kPieces];
  if (threadIdx.x != 0) return;
  for (uint64_t& barrier : arrived) w4afp8::ptx::mbarrier_init(&barrier, 1);
  w4afp8::ptx::fence_mbarrier_init();

  const auto policy = w4afp8::ptx::CachePolicy::EVICT_FIRST;
  const int64_t mine = (pieces - blockIdx.x + gridDim.x - 1) / gridDim.x;
  const auto copy = [&](int64_t i, int place) {
    const int64_t piece = blockIdx.x + i * gridDim.x;
    w4afp8::ptx::mbarrier_arrive_expect(&arrived[place], kPieceBytes);
    w4afp8::ptx::bulk_copy(ring + place * kPieceBytes, data + piece * kPieceBytes, kPieceBytes,
                           &arrived[place], policy);
  };
  for (int i = 0; i < kPieces && i < mine; ++i) copy(i, i);
  int place = 0;
  uint32_t parity = 0;
  for (int64_t i = 0; i < mine; ++i) {
    w4afp8::ptx::mbarrier_wait(&arrived[place], parity);
    if (i + kPieces < mine) copy(i + kPieces, place);
    if (++place == kPieces) {
      place = 0;
      parity ^= 1;
    }
  }
}

}  // namespace

// Reads `bytes` bytes (a whole number of 16 KiB) at `data` on `stream`. Returns a cudaError_t.
extern "C" int bulk_read(const void* data, int64_t bytes, void* stream) {
  constexpr int kRingBytes = kPieceBytes * kPieces;
  cudaError_t error = cudaFuncSetAttribute(bulk_read_kernel,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, kRingBytes);
  if (error != cudaSuccess) return error;
  const int64_t pieces = bytes / kPieceBytes;
  bulk_read_kernel<<<w4afp8::sm_count(), 32, kRingBytes, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const uint8_t*>(data), pieces);
  return cudaGetLastError();
}
