// SPDX-License-Identifier: Apache-2.0
// c10d's store, backend and registry, put together as torch.distributed does.
#include "plugin/comm/gloo.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <signal.h>

#include <charconv>
#include <filesystem>
#include <optional>
#include <system_error>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>

#include "plugin/comm/c10d_transport.h"

namespace autoep::comm {
namespace {

constexpr char kLoopback[] = "127.0.0.1";

struct Address {
  std::string host;
  uint16_t port;
};

std::optional<Address> ParseAddress(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0 || text.find('/') != std::string::npos) return std::nullopt;
  Address address{text.substr(0, colon), 0};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  return error == std::errc() && stop == end ? std::optional(address) : std::nullopt;
}

// Gloo writes to its sockets with SIGPIPE enabled; by default a peer that dies would end this process without a word.
void IgnoreBrokenPipes() {
  struct sigaction current {};
  if (sigaction(SIGPIPE, nullptr, &current) == 0 && current.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
}

c10::intrusive_ptr<c10d::Store> OpenStore(const GlooOptions& options, const std::optional<Address>& address) {
  c10::intrusive_ptr<c10d::Store> store;
  if (!address) {
    store = c10::make_intrusive<c10d::FileStore>(options.store, static_cast<int>(options.size));
  } else {
    c10d::TCPStoreOptions tcp;
    tcp.port = address->port;
    tcp.isServer = options.rank == 0;
    tcp.numWorkers = options.size;
    tcp.timeout = options.timeout;
    store = c10::make_intrusive<c10d::TCPStore>(address->host, tcp);
  }
  store->setTimeout(options.timeout);
  return store;
}

c10::intrusive_ptr<c10d::ProcessGroup> Connect(const GlooOptions& options) {
  const std::optional<Address> address = ParseAddress(options.store);
  const auto rank = static_cast<int>(options.rank);
  const auto size = static_cast<int>(options.size);
  auto store = OpenStore(options, address);
  auto gloo = c10d::ProcessGroupGloo::Options::create(options.timeout);
  gloo->devices.push_back(address ? c10d::ProcessGroupGloo::createDefaultDevice()
                                  : c10d::ProcessGroupGloo::createDeviceForHostname(kLoopback));
  auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, gloo);
  auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, size);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, backend);
  group->setGroupName(options.name);
  return group;
}

Status CheckOptions(const GlooOptions& options) {
  if (options.store.empty()) return Status(Code::kPlugin, "a Gloo group needs a store: a file's path, or host:port");
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return Status(Code::kPlugin, fmt::format("rank {} of a Gloo group of {}: ranks are 0 to size - 1", options.rank, options.size));
  }
  if (FindProcessGroup(options.name)) {
    return Status(Code::kPlugin,
                  fmt::format("a process group '{}' exists already in this process: choose another name", options.name));
  }
  // c10d would wait for it.
  std::error_code ignored;
  const std::filesystem::path folder = std::filesystem::absolute(options.store, ignored).parent_path();
  if (!ParseAddress(options.store) && !std::filesystem::is_directory(folder, ignored)) {
    return Status(Code::kPlugin, fmt::format("the store of a Gloo group, {}, is in no folder that exists", options.store));
  }
  return {};
}

}  // namespace

struct GlooGroup::State {
  std::string name;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
};

GlooGroup::GlooGroup(std::unique_ptr<State> state) : state_(std::move(state)) {
  c10d::register_process_group(state_->name, state_->group);
}

GlooGroup::~GlooGroup() { c10d::unregister_process_group(state_->name); }

const std::string& GlooGroup::name() const { return state_->name; }

Status GlooGroup::Barrier() {
  try {
    state_->group->barrier()->wait();
    return {};
  } catch (const c10::Error& error) {
    return Status(Code::kPlugin, fmt::format("the ranks of '{}' did not all arrive: {}", name(), error.what_without_backtrace()));
  } catch (const std::exception& error) {  // Gloo's own
    return Status(Code::kPlugin, fmt::format("the ranks of '{}' did not all arrive: {}", name(), error.what()));
  }
}

Result<std::unique_ptr<GlooGroup>> CreateGlooGroup(const GlooOptions& options) {
  AUTOEP_RETURN_IF_ERROR(CheckOptions(options));
  IgnoreBrokenPipes();
  const auto failed = [&](const char* why) {
    return Status(Code::kPlugin, fmt::format("rank {} of {} could not join the Gloo group '{}' at {}: {}", options.rank,
                                             options.size, options.name, options.store, why));
  };
  try {
    auto state = std::make_unique<GlooGroup::State>(GlooGroup::State{options.name, Connect(options)});
    return std::unique_ptr<GlooGroup>(new GlooGroup(std::move(state)));
  } catch (const c10::Error& error) {
    return failed(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return failed(error.what());
  }
}

}  // namespace autoep::comm
