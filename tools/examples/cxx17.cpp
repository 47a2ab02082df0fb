// SPDX-License-Identifier: MIT
//
// cxx17.cpp - the quickstart in C++17: handles that release themselves, exceptions in place of statuses, vectors.
//
//     c++ -std=c++17 cxx17.cpp $(pkg-config --cflags --libs clxent) -o cxx17
#include <clxent/clxent.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace
{

// A handle that ends with its destroy or release function; as large as a pointer.
template <auto Release> struct Releaser {
    template <typename T> void operator()(T *handle) const noexcept { Release(handle); }
};
using Context = std::unique_ptr<clxent_context, Releaser<clxent_context_destroy>>;
using Plan = std::unique_ptr<clxent_plan, Releaser<clxent_plan_destroy>>;
using Queue = std::unique_ptr<std::remove_pointer_t<cl_command_queue>, Releaser<clReleaseCommandQueue>>;
using Memory = std::unique_ptr<std::remove_pointer_t<cl_mem>, Releaser<clReleaseMemObject>>;

// A status that is not CLXENT_OK: the library's, or the cl_int of an OpenCL call.
class Error : public std::runtime_error
{
  public:
    Error(clxent_status code, const std::string &what)
        : std::runtime_error(what + ": " + clxent_status_string(code)), status(code)
    {
    }
    const clxent_status status;
};

// Throws where status is an error, with the text that the context has for it.
void check(clxent_status status, const std::string &what, const clxent_context *context = nullptr)
{
    if (status == CLXENT_OK) return;
    std::string text;
    if (context != nullptr) {
        text.resize(clxent_context_last_error(context, nullptr, 0));
        clxent_context_last_error(context, text.data(), text.size());
        while (!text.empty() && text.back() == '\0') text.pop_back();
    }
    throw Error(status, text.empty() ? what : what + ": " + text);
}

// One plan with its buffers: losses and gradients of batches of one size.
class CrossEntropy
{
  public:
    struct Result {
        float loss;
        std::vector<float> gradient; // [rows, classes]
    };

    CrossEntropy(clxent_context *context, std::size_t rows, std::size_t classes) : context_(context)
    {
        clxent_desc desc = CLXENT_DESC_INIT;
        desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
        desc.batch = rows;
        desc.seq = 1;
        desc.classes = classes;
        desc.target_type = CLXENT_TARGET_I32;
        clxent_plan *plan;
        check(clxent_plan_create(&plan, context, &desc), "clxent_plan_create", context);
        plan_.reset(plan);

        cl_int code;
        queue_.reset(
            clCreateCommandQueue(clxent_context_cl(context), clxent_context_device(context), 0, &code));
        check(code, "clCreateCommandQueue");
        for (const auto &[field, name] : arguments) {
            const std::size_t size = clxent_plan_bytes(plan, name);
            if (size == 0) continue; // a workspace may be empty; OpenCL has no empty buffers
            cl_mem mem = clCreateBuffer(clxent_context_cl(context), CL_MEM_READ_WRITE, size, nullptr, &code);
            check(code, name);
            memory_.emplace_back(mem);
            (args_.*field).mem = mem;
        }
    }

    Result operator()(const std::vector<float> &logits, const std::vector<std::int32_t> &targets)
    {
        Result result{ 0, std::vector<float>(logits.size()) };
        write(args_.logits.mem, logits, "logits");
        write(args_.targets.mem, targets, "targets");
        check(clxent_enqueue(plan_.get(), queue_.get(), &args_, 0, nullptr, nullptr), "clxent_enqueue",
              context_);
        read(args_.loss.mem, &result.loss, 1);
        read(args_.gradient.mem, result.gradient.data(), result.gradient.size());
        return result;
    }

  private:
    struct Argument {
        clxent_buffer clxent_args::*field;
        const char *name;
    };
    static constexpr Argument arguments[] = {
        { &clxent_args::logits, "logits" },       { &clxent_args::targets, "targets" },
        { &clxent_args::loss, "loss" },           { &clxent_args::gradient, "gradient" },
        { &clxent_args::workspace, "workspace" },
    };

    // The queue is in order: the run sees what is written here, and a blocking call waits for all before it.
    template <typename T> void write(cl_mem mem, const std::vector<T> &from, const char *name)
    {
        if (from.size() * sizeof(T) != clxent_plan_bytes(plan_.get(), name))
            throw std::invalid_argument(std::string(name) + ": another size than the plan's");
        check(clEnqueueWriteBuffer(queue_.get(), mem, CL_TRUE, 0, from.size() * sizeof(T), from.data(), 0,
                                   nullptr, nullptr),
              "clEnqueueWriteBuffer");
    }
    template <typename T> void read(cl_mem mem, T *to, std::size_t count)
    {
        check(clEnqueueReadBuffer(queue_.get(), mem, CL_TRUE, 0, count * sizeof(T), to, 0, nullptr, nullptr),
              "clEnqueueReadBuffer");
    }

    clxent_context *context_;
    Plan plan_;
    Queue queue_;
    std::vector<Memory> memory_;
    clxent_args args_ = CLXENT_ARGS_INIT;
};

Context open_device()
{
    clxent_context *context;
    check(clxent_context_create_default(&context, nullptr, nullptr), "clxent_context_create_default");
    return Context(context);
}

bool run()
{
    const Context context = open_device();
    CrossEntropy cross_entropy(context.get(), 2, 4);
    const std::vector<float> logits{ 1, 3, 5, 7, 1, -9, 4, 8 };
    const std::vector<std::int32_t> targets{ 3, 1 };
    const auto [loss, gradient] = cross_entropy(logits, targets);
    std::printf("loss      %.6f\n", static_cast<double>(loss));

    // A plan that cannot be: the text names the field, what it got and what it takes.
    bool thrown = false;
    try {
        CrossEntropy(context.get(), 2, 0);
    } catch (const Error &error) {
        std::printf("refused   %s\n", error.what());
        thrown = error.status == CLXENT_ERROR_INVALID_DESC;
    }

    // The same in double precision.
    const std::vector<double> x(logits.begin(), logits.end()), got(gradient.begin(), gradient.end());
    double mean = 0, worst = 0;
    for (std::size_t row = 0; row < 2; row++) {
        const std::size_t first = row * 4, target = first + static_cast<std::size_t>(targets[row]);
        double sum_exp = 0;
        for (std::size_t i = first; i < first + 4; i++) sum_exp += std::exp(x[i]);
        mean += (std::log(sum_exp) - x[target]) / 2;
        for (std::size_t i = first; i < first + 4; i++)
            worst =
                std::fmax(worst, std::fabs(got[i] - (std::exp(x[i]) / sum_exp - (i == target ? 1 : 0)) / 2));
    }
    return thrown && worst < 1e-6 && std::fabs(static_cast<double>(loss) - mean) < 1e-6 * mean;
}

} // namespace

int main()
{
    try {
        return run() ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return EXIT_FAILURE;
    }
}
