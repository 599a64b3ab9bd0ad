// SPDX-License-Identifier: Apache-2.0
// Tensors of any plain dtype in safetensors files: a model's inputs and outputs, and what ranks hand back.
#pragma once

#include <map>
#include <string>

#include "plugin/io/output.h"
#include "plugin/io/safetensors.h"
#include "plugin/io/status.h"
#include "tools/inputs.h"

namespace autoep {

struct TensorFile {
  NamedTensors tensors;  // CPU, contiguous, memory of their own
  std::map<std::string, std::string> metadata;
};

// A copy in memory of its own. kInput: a dtype that torch has no plain equivalent of.
Result<at::Tensor> CopyTensor(const SafetensorsTensor& stored);

// kInput: unreadable or malformed, or a dtype that torch has no plain equivalent of.
Result<TensorFile> ReadTensors(const std::string& path);

// Writes to `sink`. kUsage for a dtype that safetensors has no name for, naming the tensor.
Status WriteTensors(const TensorFile& file, const ByteSink& sink);

// A new file at `path`, for files of our own in a private folder.
Status WriteTensorsTo(const std::string& path, const TensorFile& file);

}  // namespace autoep
