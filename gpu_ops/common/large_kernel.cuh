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

// Launches of kernels with more than 48 KB of shared memory, which the driver must allow before the first. They go
// through the driver's own call: cudaLaunchKernelEx takes the host 0.4 us more (kernel-log.md, run 125).
#pragma once

#include <array>
#include <atomic>

#include "common/device.h"
#include "common/driver_function.h"
#include "common/relaxed_capture.h"

namespace w4afp8 {

struct LaunchShape {
  dim3 blocks;
  int threads;
  int64_t shared_bytes;  // dynamic, of each block
  int cluster;           // blocks along x that make one
  bool starts_early;     // may begin before the kernel before it has ended: grid_dependency.cuh
};

template <auto kKernel>
class LargeKernel;

template <typename... Params, void (*kKernel)(Params...)>
class LargeKernel<kKernel> {
 public:
  // `device`: the current one, with a context (ensure_context). `most_shared_bytes`: of any launch of the kernel.
  // Returns this launch's own error.
  static cudaError_t launch(const Device& device, int most_shared_bytes, const LaunchShape& shape,
                            cudaStream_t stream, const Params&... params) {
    CUfunction function = nullptr;
    const cudaError_t error = find(device.index, most_shared_bytes, &function);
    if (error != cudaSuccess) return error;
    const auto launcher = kernel_launcher();
    if (launcher == nullptr) return cudaErrorInsufficientDriver;

    CUlaunchAttribute attributes[2] = {};
    CUlaunchConfig config = {};
    config.gridDimX = shape.blocks.x, config.gridDimY = shape.blocks.y;
    config.gridDimZ = shape.blocks.z;
    config.blockDimX = static_cast<unsigned>(shape.threads), config.blockDimY = 1;
    config.blockDimZ = 1;
    config.sharedMemBytes = static_cast<unsigned>(shape.shared_bytes);
    config.hStream = stream;
    config.attrs = attributes;
    if (shape.starts_early) {
      CUlaunchAttribute& early = attributes[config.numAttrs++];
      early.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      early.value.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster > 1) {
      CUlaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
      cluster.value.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    }
    void* values[] = {const_cast<void*>(static_cast<const void*>(&params))...};
    // The errors of both share their numbers.
    return static_cast<cudaError_t>(launcher(&config, function, values, nullptr));
  }

 private:
  // The kernel as the driver knows it in the device's primary context, found and given its shared memory once.
  static cudaError_t find(int device, int most_shared_bytes, CUfunction* function) {
    static std::array<std::atomic<CUfunction>, kMaxDevices> cache{};
    if (device < kMaxDevices) *function = cache[device].load(std::memory_order_acquire);
    if (*function != nullptr) return cudaSuccess;
    const RelaxedCapture relaxed;
    cudaError_t error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             most_shared_bytes);
    if (error != cudaSuccess) return error;
    error = cudaGetFuncBySymbol(function, reinterpret_cast<const void*>(kKernel));
    if (error != cudaSuccess) return error;
    if (device < kMaxDevices) cache[device].store(*function, std::memory_order_release);
    return cudaSuccess;
  }
};

}  // namespace w4afp8
