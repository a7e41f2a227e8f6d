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

// The least that an operator's call can cost the host: one tensor in, one allocated, one launch.
// Built and called by w4afp8.bench.on_gpu.host.
#include "paddle/utils/pybind.h"
#include "paddle_api.h"

namespace py = pybind11;

namespace {

// `launch`: address of an `int launch(void* stream)`; `stream`: a cudaStream_t. Returns a new
// bfloat16 tensor of x's rows and `features` columns.
py::object empty_call(py::handle x, int64_t features, uintptr_t launch, uintptr_t stream) {
  const paddle::Tensor& x_ = paddle::pybind::CastPyArg2Tensor(x.ptr(), 0);
  paddle::Tensor out;
  {
    const py::gil_scoped_release release;
    out = paddle::empty({x_.shape()[0], features}, phi::DataType::BFLOAT16, x_.place());
    const int error = reinterpret_cast<int (*)(void*)>(launch)(reinterpret_cast<void*>(stream));
    if (error != 0) throw std::runtime_error("the empty launch failed");
  }
  return py::reinterpret_steal<py::object>(paddle::pybind::ToPyObject(out));
}

}  // namespace

PYBIND11_MODULE(empty_call, m) { m.def("empty_call", empty_call); }
