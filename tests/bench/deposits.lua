-- wrk: one deposit a request, each with a key of its own, spread over the accounts given.
-- wrk -s deposits.lua URL -- <token> <path prefix> <mark> <account id>...
local counter, mark, accounts, prefix, threads = 0, "", {}, "", 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

function init(arguments)
  wrk.method = "POST"
  wrk.body = '{"amount": 100, "method": "direct"}'
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. arguments[1]
  prefix, mark = arguments[2], arguments[3] .. "-" .. number .. "-"
  for index = 4, #arguments do accounts[#accounts + 1] = arguments[index] end
end

function request()
  counter = counter + 1
  wrk.headers["Idempotency-Key"] = mark .. counter
  return wrk.format(nil, prefix .. accounts[counter % #accounts + 1] .. "/deposits")
end

function done(summary, latency)
  io.write(string.format("RESULT %d %d %d %.2f %.2f\n", summary.requests, summary.errors.status, summary.duration,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
