// SPDX-License-Identifier: Apache-2.0
// The early check of options and subcommands.
#include "tools/arguments.h"

#include <fmt/format.h>

#include <charconv>
#include <sstream>

#include "plugin/io/text.h"

namespace autoep {
namespace {

// The apps an option may belong to: the subcommand and, by fallthrough, its parents.
using Chain = std::vector<const CLI::App*>;

const CLI::Option* FindOption(const Chain& chain, const std::string& name) {
  for (auto app = chain.rbegin(); app != chain.rend(); ++app) {
    for (const CLI::Option* option : (*app)->get_options()) {
      if (option->check_name(name)) return option;
    }
  }
  return nullptr;
}

std::vector<std::string> OptionNames(const Chain& chain) {
  std::vector<std::string> names;
  for (const CLI::App* app : chain) {
    for (const CLI::Option* option : app->get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
  }
  return names;
}

std::string CommandName(const Chain& chain) {
  std::string name = "autoep";
  for (size_t i = 1; i < chain.size(); ++i) name += " " + chain[i]->get_name();
  return name;
}

const CLI::App* FindSubcommand(const CLI::App& app, const std::string& name) {
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (sub->get_name() == name) return sub;
  }
  return nullptr;
}

Status UnknownSubcommand(const Chain& chain, const std::string& word) {
  std::vector<std::string> known;
  for (const CLI::App* sub : chain.back()->get_subcommands([](const CLI::App*) { return true; })) {
    if (!sub->get_group().empty()) known.push_back(sub->get_name());
  }
  return Status(Code::kUsage, fmt::format("'{}' has no subcommand '{}'{}; it has {}", CommandName(chain), Printable(word),
                                          DidYouMean(word, known), JoinWords(known)));
}

bool HasSubcommands(const CLI::App& app) {
  return !app.get_subcommands([](const CLI::App*) { return true; }).empty();
}

bool LooksLikeOption(const std::string& word) {
  return word.size() > 1 && word[0] == '-' && !std::isdigit(static_cast<unsigned char>(word[1]));
}

}  // namespace

Status CheckWords(const CLI::App& app, const std::vector<std::string>& words) {
  Chain chain = {&app};
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--") break;
    if (LooksLikeOption(word)) {
      const bool is_long = word[1] == '-';
      const std::string name = is_long ? word.substr(0, word.find('=')) : word.substr(0, 2);
      const CLI::Option* option = FindOption(chain, name);
      if (!option) {
        return Status(Code::kUsage, fmt::format("'{}' has no option '{}'{}; '{} --help' lists them", CommandName(chain),
                                                Printable(name), DidYouMean(name, OptionNames(chain)), CommandName(chain)));
      }
      const bool value_attached = is_long ? word.size() > name.size() : word.size() > 2;
      const bool takes_value = option->get_expected_min() > 0;
      // CLI11 would take the next word as the value.
      if (takes_value && is_long && word.size() == name.size() + 1) {
        return Status(Code::kUsage, fmt::format("{} cannot be ''; put a value after the '='", name));
      }
      if (takes_value && !value_attached) ++i;
    } else if (HasSubcommands(*chain.back())) {
      const CLI::App* sub = FindSubcommand(*chain.back(), word);
      if (!sub) return UnknownSubcommand(chain, word);
      chain.push_back(sub);
    }
  }
  return Status();
}

Status CheckChoice(const std::string& option, const std::string& value, const std::vector<std::string>& choices) {
  for (const std::string& choice : choices) {
    if (value == choice) return Status();
  }
  return Status(Code::kUsage, fmt::format("{} cannot be '{}'{}; it takes {}", option, Printable(value),
                                          DidYouMean(value, choices), JoinWords(choices)));
}

Result<int64_t> ParseWhole(const std::string& option, const std::string& text, int64_t min) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc() && stop == end && value >= min) return value;
  return Status(Code::kUsage, fmt::format("{} cannot be '{}'; it takes a whole number from {} on", option, Printable(text), min));
}

std::vector<std::string> SplitCommas(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

}  // namespace autoep
