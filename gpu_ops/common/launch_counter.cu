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

#include <array>
#include <atomic>

#include "common/device.h"
#include "common/launch_counter.h"
#include "common/relaxed_capture.h"

namespace w4afp8 {
namespace {

constexpr uint32_t kEager = 1 << 14, kCaptured = 1 << 18;

__device__ LaunchCounters counters[kEager + kCaptured];

// Of `device`, the current one; nullptr where they cannot be used.
LaunchCounters* first_counters(int device) {
  static std::array<std::atomic<LaunchCounters*>, kMaxDevices> cache{};
  if (device >= kMaxDevices) return nullptr;
  LaunchCounters* first = cache[device].load(std::memory_order_relaxed);
  if (first == nullptr) {
    const RelaxedCapture relaxed;
    void* address = nullptr;
    const cudaError_t error = cudaGetSymbolAddress(&address, counters);
    if (error != cudaSuccess) {
      cudaGetLastError();  // an error left behind would be blamed on the launch
      return nullptr;
    }
    first = static_cast<LaunchCounters*>(address);
    cache[device].store(first, std::memory_order_relaxed);
  }
  return first;
}

}  // namespace

LaunchCounters* launch_counters(int device, cudaStream_t stream) {
  static std::atomic<uint32_t> launched{0};
  static std::array<std::atomic<uint32_t>, kMaxDevices> captured_on{};
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  LaunchCounters* const first = first_counters(device);
  if (first == nullptr || status == cudaStreamCaptureStatusInvalidated) return nullptr;
  if (status == cudaStreamCaptureStatusNone) {
    return first + launched.fetch_add(1, std::memory_order_relaxed) % kEager;
  }
  std::atomic<uint32_t>& captured = captured_on[device];
  if (captured.load(std::memory_order_relaxed) >= kCaptured) return nullptr;
  const uint32_t own = captured.fetch_add(1, std::memory_order_relaxed);
  return own < kCaptured ? first + kEager + own : nullptr;
}

}  // namespace w4afp8
