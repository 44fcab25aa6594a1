// main.cpp: the program `llm`: its options, and nothing else.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <iterator>

#include "eval.hpp"
#include "generate.hpp"

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

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A language model that decodes through a quantized key/value cache");
  app.require_subcommand(1);
  std::string model_path;

  llm::GenerateOptions generation;
  CLI::App* generate = app.add_subcommand("generate", "Continue a prompt");
  generate->add_option("--model", model_path, "GGUF file, architecture llama or gemma3")->required();
  generate->add_option("--prompt", generation.prompt, "Text to continue, or to answer")->required();
  generate->add_option("--policy", generation.policy, "Cache, e.g. float, KIVI-2, AsymKV-30/0")->capture_default_str();
  generate->add_option("--tokens", generation.tokens, "Most tokens to generate")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  generate->add_option("--temperature", generation.temperature, "0 takes the most probable token")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  generate->add_option("--seed", generation.seed, "Of the draws")->capture_default_str();
  generate->add_flag("--chat", generation.chat, "Put the prompt into the ChatML template");

  llm::EvalOptions evaluation;
  std::string text_path, json_path;
  CLI::App* eval = app.add_subcommand("eval", "Measure what policies cost against the float cache");
  eval->add_option("--model", model_path, "GGUF file, architecture llama or gemma3")->required();
  eval->add_option("--text", text_path, "File with the text")->required();
  eval->add_option("--windows", evaluation.windows, "Windows from the start of the text")->capture_default_str();
  eval->add_option("--context", evaluation.context, "Tokens of a window")->capture_default_str();
  eval->add_option("--skip", evaluation.skip, "Positions of a window that are not judged")->capture_default_str();
  eval->add_option("--policies", evaluation.policies, "Names, separated by commas")->required()->delimiter(',');
  eval->add_option("--json", json_path, "Write the results to this file, too");

  CLI11_PARSE(app, argc, argv);
  try {
    const llm::GgufFile file(model_path);
    const std::unique_ptr<llm::Tokenizer> tokenizer = llm::read_tokenizer(file);
    const llm::Model model(file);
    if (generate->parsed()) {
      llm::generate(model, *tokenizer, generation, std::cout, std::cerr);
    } else {
      const std::vector<llm::Token> text = llm::window_tokens(*tokenizer, read_text(text_path), evaluation.context);
      const std::vector<llm::EvalResult> results = llm::evaluate(model, text, evaluation, isatty(STDERR_FILENO) == 1);
      std::cout << llm::to_table(results);
      if (!json_path.empty()) write_text(json_path, llm::to_json(results));
    }
  } catch (const std::exception& error) {
    std::cerr << "llm: " << error.what() << std::endl;
    return 1;
  }
}
