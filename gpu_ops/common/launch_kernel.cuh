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

// Kernel launches whose own error comes back, not one left behind by an earlier call.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "common/device.h"
#include "common/relaxed_capture.h"

namespace w4afp8 {

constexpr int64_t kMaxGrid = 2147483647;  // blocks along x

template <typename... Params, typename... Args>
cudaError_t launch_kernel(void (*kernel)(Params...), int64_t blocks, int threads,
                          cudaStream_t stream, const Args&... args) {
  if (blocks == 0) return cudaSuccess;  // CUDA refuses an empty grid
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// The same for a kernel that keeps the rule of grid_dependency.cuh: it may start before the kernel
// before it in the stream has ended. CUDA graphs capture that too. `shared_bytes` of dynamic shared
// memory for each block, up to 48 KB.
template <typename... Params, typename... Args>
cudaError_t launch_dependent_kernel_with_memory(void (*kernel)(Params...), int64_t blocks,
                                                int threads, int shared_bytes, cudaStream_t stream,
                                                const Args&... args) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

template <typename... Params, typename... Args>
cudaError_t launch_dependent_kernel(void (*kernel)(Params...), int64_t blocks, int threads,
                                    cudaStream_t stream, const Args&... args) {
  return launch_dependent_kernel_with_memory(kernel, blocks, threads, 0, stream, args...);
}

// For a kernel between two of LargeKernel: asks, once for each device, that multiprocessors keep their memory divided as
// these have it, mostly shared. Probably they must be idle to divide it otherwise. A layer with one token in 8 experts
// takes 3 to 4% less by it with the activation; other kernels gain nothing (kernel-log.md, runs 199 and 201). A hint: where
// it is not taken the kernel runs all the same.
template <auto kKernel>
void prefer_shared_memory() {
  static std::array<std::atomic<bool>, kMaxDevices> asked{};
  const int device = current_device().index;
  if (device < kMaxDevices && asked[device].exchange(true, std::memory_order_relaxed)) return;
  const RelaxedCapture relaxed;
  const cudaError_t error = cudaFuncSetAttribute(
      kKernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) cudaGetLastError();  // else the next call would be blamed for it
}

}  // namespace w4afp8
