// SPDX-License-Identifier: Apache-2.0
// The registry of subcommands.
#include "tools/subcommand.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace autoep {
namespace {

std::vector<SubcommandFactory>& Factories() {
  static auto* factories = new std::vector<SubcommandFactory>;
  return *factories;
}

}  // namespace

void Subcommand::AddJsonFlag(CLI::App& app) {
  app.add_flag("--json", json_, "Print one JSON document on stdout instead of text")->group("Output");
}

void AddSubcommand(SubcommandFactory factory) { Factories().push_back(std::move(factory)); }

std::vector<std::unique_ptr<Subcommand>> MakeSubcommands() {
  std::vector<std::unique_ptr<Subcommand>> commands;
  for (const SubcommandFactory& factory : Factories()) commands.push_back(factory());
  std::sort(commands.begin(), commands.end(), [](const auto& a, const auto& b) { return a->name() < b->name(); });
  for (size_t i = 1; i < commands.size(); ++i) {
    if (commands[i - 1]->name() != commands[i]->name()) continue;
    std::fprintf(stderr, "two subcommands are named '%s'\n", commands[i]->name().c_str());
    std::abort();
  }
  return commands;
}

}  // namespace autoep
