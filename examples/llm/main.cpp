// main.cpp: the program `llm`: its options, and nothing else.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <asymkv/policy.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>

#include "asymmetry.hpp"
#include "calibration.hpp"
#include "eval_report.hpp"
#include "generate.hpp"
#include "model_file.hpp"
#include "passkey.hpp"
#include "policy_cache.hpp"
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

/// Throws as write_text() would, before what takes long; the file keeps what it has, nothing if it is new.
void check_writable(const std::string& path) {
  if (!path.empty() && !std::ofstream(path, std::ios::app)) throw std::runtime_error(path + ": cannot be written");
}

constexpr const char* model_help = "GGUF file, architecture llama or gemma3";

/// What measurements read and write: one model and one text, or several where the command takes them.
struct Paths {
  std::vector<std::string> models, texts;
  std::string json;

  void add_to(CLI::App& command, bool several = false) {
    add_files(command, "--model", models, model_help, several);
    add_files(command, "--text", texts, "File with the text", several);
    command.add_option("--json", json, "Write the results to this file, too");
  }
  const std::string& model() const { return models.front(); }
  std::string read() const { return read_text(texts.front()); }
  std::string text_name() const { return file_name(texts.front()); }
  void write_json(const std::string& text) const {
    if (!json.empty()) write_text(json, text);
  }
  static std::string file_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

 private:
  static void add_files(CLI::App& command, const char* name, std::vector<std::string>& files, std::string help,
                        bool several) {
    if (several) help += "; several: separated by commas, or the option again";
    CLI::Option& option = *command.add_option(name, files, help)->required()->check(CLI::ExistingFile);
    if (several)
      option.delimiter(',');
    else
      option.expected(1);
  }
};

/// The option --policies.
struct Policies {
  std::string list;

  void add_to(CLI::App& command) {
    command
        .add_option("--policies", list,
                    "Names separated by commas; k{1,2}v1 stands for k1v1,k2v1, `all` for the paper's settings and the "
                    "presets, `ablation` for each technique of the presets alone and all without it")
        ->required();
  }
  std::vector<std::string> of(const llm::Architecture& shape) const { return llm::expand_policies(list, shape.layers); }
  /// Throws where a model does not have a policy, before the hours that another model may take.
  void check(const std::vector<std::string>& models) const {
    for (const std::string& path : models) {
      const llm::Architecture shape{llm::GgufFile(path)};
      for (const std::string& policy : of(shape)) try {
          llm::parse_policy(policy, shape.cache_shape());
        } catch (const std::exception& error) {
          throw std::runtime_error(path + ": " + error.what());
        }
    }
  }
};

std::FILE* terminal() { return isatty(STDERR_FILENO) == 1 ? stderr : nullptr; }

void add_residual(CLI::App& command, llm::Index& residual) {
  command.add_option("--residual", residual, "The paper's R, tokens kept in full precision")->capture_default_str();
}

// Each of these adds a command, whose options live as long as the callback that runs it.

void add_generate(CLI::App& app) {
  struct State {
    std::string model, prompt_file;
    llm::GenerateOptions options;
  };
  const auto state = std::make_shared<State>();
  llm::GenerateOptions& options = state->options;
  CLI::App& command = *app.add_subcommand("generate", "Continue a prompt");
  command.add_option("--model", state->model, model_help)->required();
  CLI::Option_group& prompt = *command.add_option_group("prompt");
  prompt.add_option("--prompt", options.prompt, "Text to continue, or to answer");
  prompt.add_option("--prompt-file", state->prompt_file, "File with the text, which is not repeated")
      ->check(CLI::ExistingFile);
  prompt.require_option(1);
  command.add_option("--prompt-tokens", options.prompt_tokens, "Cut the prompt after so many tokens")
      ->check(CLI::PositiveNumber)
      ->excludes(command.add_flag("--chat", options.chat, "Put the prompt into the ChatML template"));
  command.add_option("--policy", options.policy, "Cache, e.g. float, half, KIVI-2, balanced-1.7")
      ->capture_default_str();
  command.add_option("--tokens", options.tokens, "Most tokens to generate")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command.add_option("--temperature", options.temperature, "0 takes the most probable token")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command.add_option("--seed", options.seed, "Of the draws")->capture_default_str();
  command.callback([state] {
    if (!state->prompt_file.empty()) state->options.prompt = read_text(state->prompt_file);
    state->options.echo = state->prompt_file.empty() && !state->options.chat;
    const llm::ModelFile file(state->model);
    llm::generate(file.model, *file.tokenizer, state->options, std::cout, std::cerr);
  });
}

void add_eval(CLI::App& app) {
  struct State {
    Paths paths;
    Policies policies;
    llm::EvalOptions options;
  };
  const auto state = std::make_shared<State>();
  llm::EvalOptions& options = state->options;
  CLI::App& command = *app.add_subcommand("eval", "Measure what policies cost against the float cache");
  state->paths.add_to(command, true);
  state->policies.add_to(command);
  command.add_option("--first-window", options.first_window, "Windows left out at the start")->capture_default_str();
  command.add_option("--windows", options.windows, "Consecutive windows of the text")->capture_default_str();
  command.add_option("--context", options.context, "Tokens of a window")->capture_default_str();
  command.add_option("--skip", options.skip, "Positions of a window that are not judged")->capture_default_str();
  add_residual(command, options.residual);
  command.add_option("--chunk", options.chunk, "Tokens fed at once")->capture_default_str();
  command.add_option("--passkey", options.passkey_trials, "Trials of the passkey test at each depth; 0 leaves it out")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command.callback([state] {
    const Paths& paths = state->paths;
    check_writable(paths.json);
    state->policies.check(paths.models);
    std::vector<llm::EvalReport> reports;
    for (const std::string& path : paths.models) {
      const llm::ModelFile file(path);
      state->options.policies = state->policies.of(file.model.shape);
      for (const std::string& text : paths.texts) {
        reports.push_back(llm::report(file, Paths::file_name(text), read_text(text), state->options, terminal()));
        std::cout << (reports.size() > 1 ? "\n" : "") << llm::to_table(reports.back()) << std::flush;
        paths.write_json(llm::to_json(reports));  // what is done is kept
      }
    }
    const std::string ratios = llm::to_ratio_table(reports);
    if (!ratios.empty()) std::cout << '\n' << ratios;
  });
}

void add_passkey(CLI::App& app) {
  struct State {
    Paths paths;
    Policies policies;
    llm::PasskeyOptions options;
  };
  const auto state = std::make_shared<State>();
  llm::PasskeyOptions& options = state->options;
  CLI::App& command = *app.add_subcommand("passkey", "Measure whether policies find a key hidden in a long text");
  state->paths.add_to(command);
  state->policies.add_to(command);
  command.add_option("--contexts", options.contexts, "Tokens of a trial")->delimiter(',')->capture_default_str();
  command.add_option("--depths", options.depths, "Where the key stands, 0 the start, 1 the end")
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("--trials", options.trials, "Of each context and depth")->capture_default_str();
  command.add_option("--seed", options.seed, "Of the keys and the filler")->capture_default_str();
  add_residual(command, options.residual);
  command.callback([state] {
    check_writable(state->paths.json);
    const llm::ModelFile file(state->paths.model());
    state->options.policies = state->policies.of(file.model.shape);
    const std::vector<llm::Token> filler = file.tokenizer->encode(state->paths.read());
    const auto results = llm::find_passkeys(file.model, *file.tokenizer, filler, state->options, terminal());
    std::cout << llm::to_table(results);
    state->paths.write_json(llm::to_json(file.name(), state->paths.text_name(), state->options, results));
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
    check_writable(state->paths.json);
    const llm::ModelFile file(state->paths.model());
    const std::vector<llm::Token> text =
        llm::window_tokens(*file.tokenizer, state->paths.read(), state->options.context);
    const auto results = llm::measure_asymmetry(file.model, text, state->options, terminal());
    std::cout << llm::to_table(results);
    state->paths.write_json(llm::to_json(file.name(), state->paths.text_name(), state->options, results));
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
    check_writable(state->out);
    const llm::ModelFile file(state->model);
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
