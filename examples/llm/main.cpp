// main.cpp: the program `llm`: its options, and nothing else.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>

#include "asymmetry.hpp"
#include "calibration.hpp"
#include "eval.hpp"
#include "generate.hpp"
#include "passkey.hpp"
#include "policy_list.hpp"

namespace {

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw std::runtime_error(path + ": cannot be read");
  return text;
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << '\n';
  file.close();
  if (!file) throw std::runtime_error(path + ": cannot be written");
}

constexpr const char* model_help = "GGUF file, architecture llama or gemma3";

/// A model file, open, with all that is made from it.
struct ModelFile {
  explicit ModelFile(const std::string& path) : file(path), tokenizer(llm::read_tokenizer(file)), model(file) {}
  const llm::GgufFile file;
  const std::unique_ptr<llm::Tokenizer> tokenizer;
  const llm::Model model;

  std::string name() const {
    return file.has("general.name") ? file.text("general.name") : std::filesystem::path(file.path()).stem().string();
  }
};

/// Files that measurements read and write.
struct Paths {
  std::string model, text, json;

  void add_to(CLI::App& command) {
    command.add_option("--model", model, model_help)->required();
    command.add_option("--text", text, "File with the text")->required();
    command.add_option("--json", json, "Write the results to this file, too");
  }
  std::vector<llm::Token> read_windows(const ModelFile& from, llm::Index context) const {
    return llm::window_tokens(*from.tokenizer, read_text(text), context);
  }
  std::string text_name() const { return std::filesystem::path(text).filename().string(); }
  void report(const std::string& table, const std::string& json_text) const {
    std::cout << table;
    if (!json.empty()) write_text(json, json_text);
  }
};

std::FILE* terminal() { return isatty(STDERR_FILENO) == 1 ? stderr : nullptr; }

void add_policies(CLI::App& command, std::string& policies) {
  command
      .add_option("--policies", policies,
                  "Names separated by commas; k{1,2}v1 stands for k1v1,k2v1, and `all` for the paper's settings and "
                  "the presets")
      ->required();
}

// Each of these adds a command, whose options live as long as the callback that runs it.

void add_generate(CLI::App& app) {
  struct State {
    std::string model;
    llm::GenerateOptions options;
  };
  const auto state = std::make_shared<State>();
  llm::GenerateOptions& options = state->options;
  CLI::App& command = *app.add_subcommand("generate", "Continue a prompt");
  command.add_option("--model", state->model, model_help)->required();
  command.add_option("--prompt", options.prompt, "Text to continue, or to answer")->required();
  command.add_option("--policy", options.policy, "Cache, e.g. float, KIVI-2, AsymKV-30/0")->capture_default_str();
  command.add_option("--tokens", options.tokens, "Most tokens to generate")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command.add_option("--temperature", options.temperature, "0 takes the most probable token")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command.add_option("--seed", options.seed, "Of the draws")->capture_default_str();
  command.add_flag("--chat", options.chat, "Put the prompt into the ChatML template");
  command.callback([state] {
    const ModelFile file(state->model);
    llm::generate(file.model, *file.tokenizer, state->options, std::cout, std::cerr);
  });
}

void add_eval(CLI::App& app) {
  struct State {
    Paths paths;
    std::string policies;
    llm::EvalOptions options;
  };
  const auto state = std::make_shared<State>();
  llm::EvalOptions& options = state->options;
  CLI::App& command = *app.add_subcommand("eval", "Measure what policies cost against the float cache");
  state->paths.add_to(command);
  add_policies(command, state->policies);
  command.add_option("--first-window", options.first_window, "Windows left out at the start")->capture_default_str();
  command.add_option("--windows", options.windows, "Consecutive windows of the text")->capture_default_str();
  command.add_option("--context", options.context, "Tokens of a window")->capture_default_str();
  command.add_option("--skip", options.skip, "Positions of a window that are not judged")->capture_default_str();
  command.add_option("--residual", options.residual, "The paper's R, tokens kept in full precision")
      ->capture_default_str();
  command.add_option("--chunk", options.chunk, "Tokens fed at once")->capture_default_str();
  command.callback([state] {
    const ModelFile file(state->paths.model);
    state->options.policies = llm::expand_policies(state->policies, file.model.shape.layers);
    const std::vector<llm::Token> text = state->paths.read_windows(file, state->options.context);
    const auto results = llm::evaluate(file.model, text, state->options, terminal());
    state->paths.report(llm::to_table(results), llm::to_json(file.name(), results));
  });
}

void add_passkey(CLI::App& app) {
  struct State {
    Paths paths;
    std::string policies;
    llm::PasskeyOptions options;
  };
  const auto state = std::make_shared<State>();
  llm::PasskeyOptions& options = state->options;
  CLI::App& command = *app.add_subcommand("passkey", "Measure whether policies find a key hidden in a long text");
  state->paths.add_to(command);
  add_policies(command, state->policies);
  command.add_option("--contexts", options.contexts, "Tokens of a trial")->delimiter(',')->capture_default_str();
  command.add_option("--depths", options.depths, "Where the key stands, 0 the start, 1 the end")
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("--trials", options.trials, "Of each context and depth")->capture_default_str();
  command.add_option("--seed", options.seed, "Of the keys and the filler")->capture_default_str();
  command.callback([state] {
    const ModelFile file(state->paths.model);
    state->options.policies = llm::expand_policies(state->policies, file.model.shape.layers);
    const std::vector<llm::Token> filler = file.tokenizer->encode(read_text(state->paths.text));
    const auto results = llm::find_passkeys(file.model, *file.tokenizer, filler, state->options, terminal());
    state->paths.report(llm::to_table(results),
                        llm::to_json(file.name(), state->paths.text_name(), state->options, results));
  });
}

void add_asymmetry(CLI::App& app) {
  struct State {
    Paths paths;
    llm::AsymmetryOptions options;
  };
  const auto state = std::make_shared<State>();
  CLI::App& command = *app.add_subcommand("asymmetry", "Measure what equal errors of keys and values do to attention");
  state->paths.add_to(command);
  command.add_option("--windows", state->options.windows, "Windows from the start of the text")->capture_default_str();
  command.add_option("--context", state->options.context, "Tokens of a window")->capture_default_str();
  command.add_option("--skip", state->options.skip, "Queries of a window that are not judged")->capture_default_str();
  command.callback([state] {
    const ModelFile file(state->paths.model);
    const std::vector<llm::Token> text = state->paths.read_windows(file, state->options.context);
    const auto results = llm::measure_asymmetry(file.model, text, state->options, terminal());
    state->paths.report(llm::to_table(results),
                        llm::to_json(file.name(), state->paths.text_name(), state->options, results));
  });
}

void add_calibrate(CLI::App& app) {
  struct State {
    std::string model, text, out;
    llm::CalibrateOptions options;
  };
  const auto state = std::make_shared<State>();
  llm::CalibrateOptions& options = state->options;
  CLI::App& command = *app.add_subcommand("calibrate", "Choose the bits of every layer within a budget");
  command.add_option("--model", state->model, model_help)->required();
  command.add_option("--text", state->text, "File with the text")->required();
  command.add_option("--budget-bits", options.budget_bits, "All-in bits an element")->capture_default_str();
  command.add_option("--out", state->out, "Write the policy to this file, in KVTuner's YAML, which --policies reads");
  command.add_option("--first-window", options.first_window, "Windows left out at the start")->capture_default_str();
  command.add_option("--windows", options.windows, "Consecutive windows of the text")->capture_default_str();
  command.add_option("--context", options.context, "Tokens of a window")->capture_default_str();
  command.add_option("--skip", options.skip, "Positions of a window that are not judged")->capture_default_str();
  command.add_option("--chunk", options.chunk, "Tokens fed at once")->capture_default_str();
  command.callback([state] {
    const ModelFile file(state->model);
    const std::vector<llm::Token> text =
        llm::window_tokens(*file.tokenizer, read_text(state->text), state->options.context);
    const asymkv::Calibration result = llm::calibrate(file.model, text, state->options, terminal());
    std::cout << llm::to_table(result, file.model.shape.cache_shape());
    if (!state->out.empty()) write_text(state->out, llm::to_yaml(result.policy));
  });
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A language model that decodes through a quantized key/value cache");
  app.require_subcommand(1);
  add_generate(app);
  add_eval(app);
  add_passkey(app);
  add_asymmetry(app);
  add_calibrate(app);
  try {
    CLI11_PARSE(app, argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "llm: " << error.what() << std::endl;
    return 1;
  }
}
