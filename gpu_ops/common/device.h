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

// Facts about the current CUDA device, asked of the driver once per device. Host only.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstdint>

namespace w4afp8 {

constexpr int kMaxDevices = 64;  // more than these are asked each time

struct Device {
  int index = 0;
  int compute_major = 0;  // 0: no device can be used
  int sm_count = 0;
};

// The current one of this thread.
inline Device current_device() {
  static std::array<std::atomic<uint32_t>, kMaxDevices> cache{};  // major << 16 | sm_count

  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) {
    cudaGetLastError();  // an error left behind would be blamed on the next call
    return {};
  }
  uint32_t facts = device < kMaxDevices ? cache[device].load(std::memory_order_relaxed) : 0;
  if (facts == 0) {
    int major = 0, sm_count = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
      cudaGetLastError();
      return {};
    }
    facts = static_cast<uint32_t>(major) << 16 | static_cast<uint32_t>(sm_count);
    if (device < kMaxDevices) cache[device].store(facts, std::memory_order_relaxed);
  }
  return {device, static_cast<int>(facts >> 16), static_cast<int>(facts & 0xFFFF)};
}

// nullptr where kernels built for sm_90a can run on the current device, else the reason.
inline const char* check_device() {
  const int major = current_device().compute_major;
  if (major == 0) return "no CUDA driver or no CUDA device can be used";
  if (major != 9) return "the GPU is not a Hopper GPU: compute capability 9.0 is needed";
  return nullptr;
}

// Multiprocessors of the current device; 0 where there is none.
inline int sm_count() { return current_device().sm_count; }

}  // namespace w4afp8
