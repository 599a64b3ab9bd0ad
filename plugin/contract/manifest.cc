// SPDX-License-Identifier: Apache-2.0
// The manifest as JSON. Each struct lists its fields once, in Visit; reading, writing and the key check follow that list.
#include "plugin/contract/manifest.h"

#include <fmt/format.h>

#include <charconv>
#include <concepts>
#include <limits>
#include <type_traits>

#include "plugin/contract/manifest_check.h"
#include "plugin/io/files.h"
#include "plugin/io/json.h"
#include "plugin/io/text.h"

namespace autoep::contract {
namespace {

constexpr uint64_t kMaxBytes = uint64_t{256} << 20;

template <typename T, typename S>
concept Is = std::same_as<std::remove_const_t<T>, S>;

// A third argument is the smallest value of a whole number, where that is not 0.
void Visit(auto& visit, Is<ExpertSlot> auto& slot) {
  visit("rank", slot.rank);
  visit("slot", slot.slot);
}

void Visit(auto& visit, Is<SourcePart> auto& part) {
  visit("tensor", part.tensor);
  visit("expert_begin", part.expert_begin);
  visit("expert_count", part.expert_count, 1);
  visit("row_begin", part.row_begin);
  visit("row_count", part.row_count, 1);
  visit("source_row_begin", part.source_row_begin);
  visit("source_row_step", part.source_row_step, 1);
  visit("transposed", part.transposed);
}

void Visit(auto& visit, Is<ShardPiece> auto& piece) {
  visit("rank", piece.rank);
  visit("shape", piece.shape);
  visit("bytes", piece.bytes);
  visit("sha256", piece.sha256);
}

void Visit(auto& visit, Is<ManifestTensor> auto& tensor) {
  visit("role", tensor.role);
  visit("param", tensor.param);
  visit("dtype", tensor.dtype);
  visit("shape", tensor.shape, 1);
  visit("requires_grad", tensor.requires_grad);
  visit("source", tensor.source);
  visit("pieces", tensor.pieces);
}

void Visit(auto& visit, Is<ManifestLayer> auto& layer) {
  visit("path", layer.path);
  visit("block", layer.block);
  visit("label", layer.label);
  visit("family", layer.family);
  visit("form", layer.form);
  visit("num_experts", layer.num_experts, 1);
  visit("top_k", layer.top_k, 1);
  visit("hidden", layer.hidden, 1);
  visit("intermediate", layer.intermediate, 1);
  visit("activation", layer.activation);
  visit("activation_args", layer.activation_args);
  visit("weights_act", layer.weights_act);
  visit("group_attr", layer.group_attr);
  visit("placement_attr", layer.placement_attr);
  visit("placement", layer.placement);
  visit("router", layer.router);
  visit("shared_experts", layer.shared_experts);
  visit("rebuilt", layer.rebuilt);
  visit("tensors", layer.tensors);
}

void Visit(auto& visit, Is<ManifestFile> auto& file) {
  visit("file", file.file);
  visit("bytes", file.bytes);
  visit("sha256", file.sha256);
}

void Visit(auto& visit, Is<ManifestSource> auto& source) {
  visit("digest", source.digest);
  visit("bytes", source.bytes, 1);
}

void Visit(auto& visit, Is<Manifest> auto& manifest) {
  visit("version", manifest.version, 1);
  visit("op_abi", manifest.op_abi, 1);
  visit("tool", manifest.tool);
  visit("torch", manifest.torch);
  visit("layout", manifest.layout);
  visit("ep_size", manifest.ep_size, 1);
  visit("plan", manifest.plan);
  visit("source", manifest.source);
  visit("files", manifest.files);
  visit("layers", manifest.layers);
  visit("limits", manifest.limits);
}

class Writer {
 public:
  template <typename T>
  void operator()(const char* key, const T& field, int64_t = 0) {
    json_[key] = Value(field);
  }
  const Json& json() const { return json_; }

 private:
  template <typename T>
  static Json Value(const T& field) {
    if constexpr (std::constructible_from<Json, T>) {
      return field;
    } else {
      Writer writer;
      Visit(writer, field);
      return writer.json_;
    }
  }
  template <typename T>
  static Json Value(const std::vector<T>& fields) {
    Json json = Json::array();
    for (const T& field : fields) json.push_back(Value(field));
    return json;
  }

  Json json_ = Json::object();
};

struct KeyList {
  template <typename T>
  void operator()(const char* key, const T&, int64_t = 0) {
    keys.push_back(key);
  }
  std::vector<std::string> keys;
};

class Reader {
 public:
  // Fills `object` from a JSON object that has its keys and no others.
  template <typename T>
  static Status ReadObject(const JsonValue& value, T& object) {
    KeyList known;
    Visit(known, object);
    AUTOEP_RETURN_IF_ERROR(value.CheckKeys(known.keys));
    Reader reader(value);
    Visit(reader, object);
    return reader.status_;
  }

  // Keeps the first failure; what follows it is skipped.
  template <typename T>
  void operator()(const char* key, T& field, int64_t min = 0) {
    if (!status_.ok()) return;
    const Result<JsonValue> value = object_.At(key);
    status_ = value.ok() ? Read(*value, field, min) : value.status();
  }

 private:
  explicit Reader(const JsonValue& object) : object_(object) {}

  template <typename T>
  static Status Read(const JsonValue& value, T& object, int64_t) {
    return ReadObject(value, object);
  }
  template <typename T>
  static Status Read(const JsonValue& value, std::vector<T>& list, int64_t) {
    AUTOEP_ASSIGN_OR_RETURN(const std::vector<JsonValue> items, value.AsArray());
    list.resize(items.size());
    for (size_t i = 0; i < items.size(); ++i) AUTOEP_RETURN_IF_ERROR(ReadObject(items[i], list[i]));
    return {};
  }
  static Status Read(const JsonValue& value, std::string& out, int64_t) { return Take(value.AsString(), out); }
  static Status Read(const JsonValue& value, bool& out, int64_t) { return Take(value.AsBool(), out); }
  static Status Read(const JsonValue& value, int64_t& out, int64_t min) { return Take(value.AsInt(min, kMaxInt), out); }
  static Status Read(const JsonValue& value, std::vector<int64_t>& out, int64_t min) {
    return Take(value.AsInts(min, kMaxInt), out);
  }
  static Status Read(const JsonValue& value, std::vector<double>& out, int64_t) { return Take(value.AsNumbers(), out); }
  static Status Read(const JsonValue& value, std::vector<std::string>& out, int64_t) { return Take(value.AsStrings(), out); }
  static Status Read(const JsonValue& value, std::map<std::string, std::string>& out, int64_t) {
    return Take(value.AsStringMap(), out);
  }

  template <typename T>
  static Status Take(Result<T> result, T& out) {
    if (result.ok()) out = std::move(result).value();
    return result.status();
  }

  static constexpr int64_t kMaxInt = std::numeric_limits<int64_t>::max();

  const JsonValue& object_;
  Status status_;
};

// Before anything else is read: another version may have other keys.
Status CheckVersion(const JsonValue& root) {
  AUTOEP_ASSIGN_OR_RETURN(const int64_t version, root.Int("version", 1, std::numeric_limits<int64_t>::max()));
  if (version == kManifestVersion) return {};
  const Json tool = root.json().value("tool", Json());
  return root.Fail(
      fmt::format("version is {}, and this build of autoep reads {}: use the autoep that wrote it{}, or convert the "
                  "source again with this one",
                  version, kManifestVersion, tool.is_string() ? " (" + Printable(tool.get<std::string>()) + ")" : ""));
}

Result<Manifest> Parse(std::string_view text, const std::string& where) {
  AUTOEP_ASSIGN_OR_RETURN(const Json json, ParseJson(text, where, Code::kPlugin, {.bytes = kMaxBytes}));
  const JsonValue root(json, where, Code::kPlugin);
  AUTOEP_RETURN_IF_ERROR(CheckVersion(root));
  Manifest manifest;
  AUTOEP_RETURN_IF_ERROR(Reader::ReadObject(root, manifest));
  AUTOEP_RETURN_IF_ERROR(CheckManifest(manifest).At(where));
  return manifest;
}

}  // namespace

std::string ToJson(const Manifest& manifest) {
  Writer writer;
  Visit(writer, manifest);
  return DumpJson(writer.json());
}

Result<Manifest> ParseManifest(std::string_view text) { return Parse(text, kManifestName); }

Result<Manifest> ReadManifest(const std::string& directory) {
  const std::string path = directory + "/" + kManifestName;
  const Result<std::string> text = ReadTextFile(path, kMaxBytes);
  if (!text.ok()) {
    return Status(text.status().code(), text.status().message() + ": a directory that autoep convert wrote has this file");
  }
  return Parse(*text, path);
}

int64_t IdentityExperts(const std::map<std::string, std::string>& router) {
  const auto fact = router.find("identity_experts");
  int64_t count = 0;
  if (fact != router.end()) std::from_chars(fact->second.data(), fact->second.data() + fact->second.size(), count);
  return count;
}

std::string ShardName(int64_t rank, int64_t ep_size) { return fmt::format("experts-{:05}-of-{:05}.safetensors", rank, ep_size); }

std::string PerRankModelName(int64_t rank, int64_t ep_size) { return fmt::format("rank-{:05}-of-{:05}.pt", rank, ep_size); }

}  // namespace autoep::contract
