-- wrk: sends the requests of a file, each thread its share of them, so that no Idempotency-Key is sent twice.
-- wrk -s requests.lua URL -- <file> <threads>        the file: 8 digits of length, then the request, again and again
local threads, requests, index = 0, {}, 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(arguments)
  local file, count, position = io.open(arguments[1], "rb"), tonumber(arguments[2]), 0
  while true do
    local length = file:read(8)
    if not length then break end
    local request = file:read(tonumber(length))
    if position % count == number then requests[#requests + 1] = request end
    position = position + 1
  end
  file:close()
end

function request()
  index = index + 1
  return requests[(index - 1) % #requests + 1]
end

function done(summary, latency)
  io.write(string.format("RESULT %d %d %d %.3f %.3f %d\n", summary.requests, summary.errors.status, summary.duration,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
