// SPDX-License-Identifier: Apache-2.0
// Safetensors names and torch dtypes, and the copies between the two.
#include "tools/inputs_file.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <array>
#include <cstring>
#include <optional>

#include "plugin/io/safetensors.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

struct DtypeName {
  std::string_view name;
  at::ScalarType type;
};

constexpr std::array<DtypeName, 10> kDtypeNames = {{{"F64", at::kDouble},
                                                    {"F32", at::kFloat},
                                                    {"F16", at::kHalf},
                                                    {"BF16", at::kBFloat16},
                                                    {"I64", at::kLong},
                                                    {"I32", at::kInt},
                                                    {"I16", at::kShort},
                                                    {"I8", at::kChar},
                                                    {"U8", at::kByte},
                                                    {"BOOL", at::kBool}}};

std::optional<at::ScalarType> TypeOf(std::string_view name) {
  for (const DtypeName& known : kDtypeNames) {
    if (known.name == name) return known.type;
  }
  return std::nullopt;
}

std::optional<std::string> NameOf(at::ScalarType type) {
  for (const DtypeName& known : kDtypeNames) {
    if (known.type == type) return std::string(known.name);
  }
  return std::nullopt;
}

}  // namespace

Result<at::Tensor> CopyTensor(const SafetensorsTensor& stored) {
  const auto type = TypeOf(stored.dtype);
  if (!type) {
    return Status(Code::kInput, fmt::format("tensor '{}' has dtype {}, which a TorchScript model cannot take",
                                            Printable(stored.name), stored.dtype));
  }
  at::Tensor tensor = at::empty(stored.shape, *type);
  if (stored.bytes > 0) std::memcpy(tensor.mutable_data_ptr(), stored.data, stored.bytes);
  return tensor;
}

Result<TensorFile> ReadTensors(const std::string& path) {
  AUTOEP_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  TensorFile result;
  result.metadata = file.metadata();
  for (const SafetensorsTensor& stored : file.tensors()) {
    auto tensor = CopyTensor(stored);
    if (!tensor.ok()) return tensor.status().At(Printable(path));
    result.tensors.emplace_back(stored.name, std::move(*tensor));
  }
  return result;
}

Status WriteTensors(const TensorFile& file, const ByteSink& sink) {
  std::vector<SafetensorsSpec> specs;
  std::map<std::string, at::Tensor> by_name;
  for (const auto& [name, tensor] : file.tensors) {
    const auto dtype = NameOf(tensor.scalar_type());
    if (!dtype) {
      return Status(Code::kUsage, fmt::format("tensor '{}' has dtype {}, which a safetensors file cannot hold", Printable(name),
                                              c10::toString(tensor.scalar_type())));
    }
    specs.push_back({name, *dtype, tensor.sizes().vec()});
    by_name[name] = tensor.detach().cpu().contiguous();
  }
  AUTOEP_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(std::move(specs), file.metadata, sink));
  for (const SafetensorsSpec& spec : writer.tensors()) {
    const at::Tensor& tensor = by_name.at(spec.name);
    if (tensor.nbytes() > 0) AUTOEP_RETURN_IF_ERROR(writer.Append(tensor.const_data_ptr(), tensor.nbytes()));
  }
  return writer.Finish();
}

Status WriteTensorsTo(const std::string& path, const TensorFile& file) {
  AUTOEP_ASSIGN_OR_RETURN(const auto output, OutputFile::Create(path, &FileSystem::Real()));
  AUTOEP_RETURN_IF_ERROR(WriteTensors(file, output->Sink()));
  return output->Finish();
}

}  // namespace autoep
