// SPDX-License-Identifier: Apache-2.0
// autoep presets: the model families this build knows.
#include <fmt/format.h>

#include "plugin/io/json.h"
#include "plugin/io/text.h"
#include "presets/custom_preset.h"
#include "presets/registry.h"
#include "tools/subcommand.h"
#include "tools/table.h"

namespace autoep {
namespace {

std::string TestedWith(const Preset& preset) {
  return preset.test.transformers.empty() ? "" : fmt::format("transformers {}", fmt::join(preset.test.transformers, ", "));
}

class Presets : public Subcommand {
 public:
  std::string name() const override { return "presets"; }
  std::string summary() const override { return "List, show or check model families"; }
  std::string group() const override { return kInspectGroup; }
  std::string examples() const override {
    return "  autoep presets list\n"
           "  autoep presets show mixtral\n"
           "  autoep presets check my_family.yaml\n";
  }

  void Declare(CLI::App& app) override {
    app.require_subcommand(1);
    list_ = app.add_subcommand("list", "The families, one a line");
    show_ = app.add_subcommand("show", "One family's YAML");
    show_->add_option("NAME", preset_, "A family's name, or a YAML file")->type_name("")->required();
    check_ = app.add_subcommand("check", "Read a YAML file as strictly as convert does");
    check_->add_option("FILE", preset_, "A YAML file, or a family's name")->type_name("")->required();
    AddJsonFlag(app);
  }

  Status Run(Console& console) override {
    if (list_->parsed()) return List(console);
    AUTOEP_ASSIGN_OR_RETURN(const PresetChoice choice, ChoosePreset(preset_));
    if (choice.custom) return ShowCustom(*choice.custom, console);
    const std::shared_ptr<const Preset>& preset = choice.family;
    if (json()) {
      Json document = PresetJson(*preset);
      document["status"] = CodeName(Code::kOk);
      document["exit_code"] = 0;
      console.Print(DumpJson(document));
    } else if (show_->parsed()) {
      console.Print(preset->text);
    } else {
      console.Print(fmt::format("autoep: OK presets check {} ({})\n", Printable(preset->name), Printable(preset->origin)));
    }
    return Status();
  }

 private:
  // Its whole content is its keys, as they are in the file.
  Status ShowCustom(const CustomPreset& preset, Console& console) const {
    Json keys = Json::object();
    for (const auto& [key, place] : preset.places) {
      AUTOEP_ASSIGN_OR_RETURN(keys[key], place.AsJson());
    }
    if (json()) {
      console.Print(DumpJson({{"name", preset.name}, {"keys", keys}, {"status", CodeName(Code::kOk)}, {"exit_code", 0}}));
    } else if (show_->parsed()) {
      console.Print(fmt::format("name: {}\n", Printable(preset.name)));
      for (const auto& [key, value] : keys.items()) console.Print(fmt::format("{}: {}\n", key, value.dump()));
    } else {
      console.Print(fmt::format("autoep: OK presets check {} ({})\n", Printable(preset.name), Printable(preset_)));
    }
    return Status();
  }

  static Json PresetJson(const Preset& preset) {
    return {{"name", preset.name},        {"title", preset.title},        {"model_classes", preset.model_classes},
            {"block", preset.block.text}, {"router", preset.router.text}, {"transformers", preset.test.transformers},
            {"notes", preset.notes}};
  }

  Status List(Console& console) {
    const std::vector<Preset>& presets = PresetRegistry::Builtin().presets();
    if (json()) {
      Json rows = Json::array();
      for (const Preset& preset : presets) rows.push_back(PresetJson(preset));
      console.Print(DumpJson({{"presets", rows}, {"status", CodeName(Code::kOk)}, {"exit_code", 0}}));
      return Status();
    }
    Table table({{"name"}, {"title"}, {"block"}, {"tested with"}});
    for (const Preset& preset : presets) table.AddRow({preset.name, preset.title, preset.block.text, TestedWith(preset)});
    console.Print(table.Render(console));
    return Status();
  }

  CLI::App* list_ = nullptr;
  CLI::App* show_ = nullptr;
  CLI::App* check_ = nullptr;
  std::string preset_;
};

const RegisterSubcommand<Presets> kRegistered;

}  // namespace
}  // namespace autoep
