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

// One parameter struct to the kernel that runs where the tensors are.
#pragma once

#include <stdexcept>
#include <string>

#include "check.h"

#ifdef W4AFP8_WITH_CUDA
#include <cuda_runtime_api.h>

// Runs cpu::NAME or launch_NAME on `params`, where the tensor `where` is.
#define W4AFP8_RUN(NAME, params, where) run(#NAME, params, where, cpu::NAME, launch_##NAME)
#else
#define W4AFP8_RUN(NAME, params, where) cpu::NAME(params)
#endif

namespace w4afp8 {

#ifdef W4AFP8_WITH_CUDA

[[noreturn]] inline void fail_with(const char* name, const char* what, cudaError_t error) {
  throw std::runtime_error(std::string(name) + ": " + what + ": " + cudaGetErrorString(error));
}

// Makes the device of a tensor CUDA's current one, and undoes it.
class DeviceScope {
 public:
  DeviceScope(const char* name, int device) {
    if (cudaGetDevice(&before_) != cudaSuccess || before_ == device) return;
    const cudaError_t error = cudaSetDevice(device);
    if (error != cudaSuccess) fail_with(name, "the tensors' device cannot be used", error);
    changed_ = true;
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <typename Params>
void run(const char* name, const Params& params, const Tensor& where, void (*on_cpu)(const Params&),
         cudaError_t (*launch)(const Params&, cudaStream_t)) {
  if (where.is_cpu()) return on_cpu(params);
  const DeviceScope scope(name, where.place().GetDeviceId());
  if (const char* reason = check(params)) throw ArgumentError(std::string(name) + ": " + reason);
  const cudaError_t error = launch(params, reinterpret_cast<cudaStream_t>(where.stream()));
  if (error != cudaSuccess) fail_with(name, "the launch failed", error);
}

#endif

}  // namespace w4afp8
