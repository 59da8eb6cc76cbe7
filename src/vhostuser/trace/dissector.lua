-- What stands above is the protocol, as tables: HEADER, DISSECTORS, EVENTS, REQUESTS, BITS, FIELDS. Below is the code that
-- walks them. Numbers are little-endian, as on every machine that has the captures.

local HEADER_SIZE = 12
local MOST_PENDING = 1024 -- requests of a channel that wait for a reply
local SENDERS = { [0] = "front-end", [1] = "back-end" } -- by pinfo.p2p_dir: sent is from the front-end

local unpack = table.unpack or unpack -- Lua 5.1 has the latter

local vhostuser = Proto("vhostuser", "vhost-user")

-- Fields ------------------------------------------------------------------------------------------------------------

local fields = {}

local function masked(name, field, mask)
  if field.kind == "bool" then
    return ProtoField.bool(name, field.name, 64, nil, mask)
  end
  return ProtoField[field.kind](name, field.name, field.hex and base.HEX or base.DEC, nil, mask)
end

local function declare(name, field)
  if field.kind == "bytes" then
    return ProtoField.bytes(name, field.name)
  elseif not field.mask then
    return masked(name, field)
  end
  local low, high = field.mask[1], field.mask[2]
  local known, made = pcall(masked, name, field, UInt64.new(low, high))
  if known then
    return made
  end
  -- Before 4.4 a mask is a number of 32 bits. A field of a higher bit is added only where the bit is set: it needs no mask.
  return high == 0 and masked(name, field, low) or ProtoField.bool(name, field.name)
end

for name, field in pairs(FIELDS) do
  fields[name] = declare(name, field)
end

local own = {
  channel = ProtoField.string("vhostuser.channel", "Channel"),
  sender = ProtoField.string("vhostuser.sender", "Sender"),
  connection = ProtoField.uint32("vhostuser.connection", "Connection"),
  message = ProtoField.string("vhostuser.message", "Message"),
  request = ProtoField.uint32("vhostuser.request", "Request"),
  flags = ProtoField.uint32("vhostuser.flags", "Flags", base.HEX),
  version = ProtoField.uint32("vhostuser.flags.version", "Version", base.DEC, nil, HEADER.version_mask),
  reply = ProtoField.bool("vhostuser.flags.reply", "Reply", 32, nil, HEADER.reply),
  need_reply = ProtoField.bool("vhostuser.flags.need_reply", "Need reply", 32, nil, HEADER.need_reply),
  size = ProtoField.uint32("vhostuser.size", "Size of the payload"),
  payload = ProtoField.bytes("vhostuser.payload", "Payload"),
  bytes = ProtoField.bytes("vhostuser.bytes", "Bytes that are no message"),
  fd_count = ProtoField.uint32("vhostuser.fds", "File descriptors"),
  fd = ProtoField.string("vhostuser.fd", "File descriptor"),
  fd_number = ProtoField.uint32("vhostuser.fd.number", "Number"),
  fd_kind = ProtoField.string("vhostuser.fd.kind", "Kind"),
  fd_path = ProtoField.string("vhostuser.fd.path", "Path"),
  fd_inode = ProtoField.uint64("vhostuser.fd.ino", "Inode", base.DEC),
  fd_size = ProtoField.uint64("vhostuser.fd.size", "Size", base.DEC),
  note = ProtoField.string("vhostuser.note", "Note"),
  reply_in = ProtoField.framenum("vhostuser.reply_in", "Reply in", base.NONE, frametype.RESPONSE),
  reply_to = ProtoField.framenum("vhostuser.reply_to", "Reply to", base.NONE, frametype.REQUEST),
  latency = ProtoField.relative_time("vhostuser.latency", "Time since the request"),
  event = ProtoField.string("vhostuser.event", "Event"),
  queue = ProtoField.uint64("vhostuser.queue", "Queue", base.DEC),
  head = ProtoField.uint64("vhostuser.head", "Head", base.DEC),
  written = ProtoField.uint64("vhostuser.written", "Bytes written", base.DEC),
  about = ProtoField.string("vhostuser.about", "About"),
  text = ProtoField.string("vhostuser.text", "Text"),
}

local declared = {}
for _, set in ipairs({ fields, own }) do
  for _, field in pairs(set) do
    declared[#declared + 1] = field
  end
end
vhostuser.fields = declared

local experts = {
  malformed = ProtoExpert.new("vhostuser.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR),
  refused = ProtoExpert.new("vhostuser.refused", "Refused", expert.group.RESPONSE_CODE, expert.severity.WARN),
}
vhostuser.experts = experts

local comment_of = Field.new("frame.comment")

-- JSON, as comments and events have it ----------------------------------------------------------------------------

local ESCAPES = { b = "\\b", f = "\\f", n = "\\n", r = "\\r", t = "\\t" } -- shown, not obeyed
local LITERALS = { ["true"] = true, ["false"] = false, null = false }
local json_value

-- A character by its code in hexadecimal; what a terminal might obey, and half a character, stay as they are written.
local function character(written, hex)
  local code = tonumber(hex, 16)
  if not code or code < 0xA1 or code >= 0xD800 and code < 0xE000 then
    return written
  elseif code < 0x800 then
    return string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
  end
  return string.char(0xE0 + math.floor(code / 4096), 0x80 + math.floor(code / 64) % 64, 0x80 + code % 64)
end

local function json_string(text, start)
  local pieces, at = {}, start + 1
  while true do
    local stop = text:find('["\\]', at)
    if not stop then
      return nil
    end
    pieces[#pieces + 1] = text:sub(at, stop - 1)
    if text:sub(stop, stop) == '"' then
      return table.concat(pieces), stop + 1
    end
    local code = text:sub(stop + 1, stop + 1)
    if code == "u" then
      pieces[#pieces + 1] = character(text:sub(stop, stop + 5), text:sub(stop + 2, stop + 5))
      at = stop + 6
    else
      pieces[#pieces + 1] = ESCAPES[code] or code
      at = stop + 2
    end
  end
end

local function json_items(text, start, close, add, depth)
  local at = text:match("^%s*()", start + 1)
  while at and text:sub(at, at) ~= close do
    at = add(at, depth)
    at = at and text:match("^%s*,?%s*()", at)
  end
  return at and at <= #text and at + 1 or nil
end

local function json_list(text, start, depth)
  local list = {}
  local stop = json_items(text, start, "]", function(at)
    local value, after = json_value(text, at, depth)
    list[#list + 1] = value
    return after
  end)
  return list, stop
end

local function json_object(text, start, depth)
  local object = {}
  local stop = json_items(text, start, "}", function(at)
    if text:sub(at, at) ~= '"' then
      return nil
    end
    local name, after = json_string(text, at)
    after = after and text:match("^%s*:%s*()", after)
    if not after then
      return nil
    end
    object[name], after = json_value(text, after, depth)
    return after
  end)
  return object, stop
end

-- The value at `at`, and where it ends; nil where it ends if it is none. Numbers stay text: they may have 64 bits.
function json_value(text, at, depth)
  local char = text:sub(at, at)
  if depth > 8 then
    return nil, nil
  elseif char == '"' then
    return json_string(text, at)
  elseif char == "[" then
    return json_list(text, at, depth + 1)
  elseif char == "{" then
    return json_object(text, at, depth + 1)
  end
  local word, stop = text:match("^([%w.+-]+)()", at)
  if not word then
    return nil, nil
  elseif LITERALS[word] ~= nil then
    return LITERALS[word], stop
  end
  return word, stop
end

local function json(text)
  local value, stop = json_value(text, 1, 0)
  return stop and type(value) == "table" and value or {}
end

-- Our comment: what the bytes of a message don't say; a long one is in several pieces.
local function remarks_of()
  local pieces = {}
  for _, comment in ipairs({ comment_of() }) do
    local text = tostring(comment.value)
    if #pieces > 0 or text:sub(1, 13) == '{"vhostuser":' then
      pieces[#pieces + 1] = text
    end
  end
  return json(table.concat(pieces))
end

-- Which reply is whose ---------------------------------------------------------------------------------------------

local pending, links = {}, {}

function vhostuser.init()
  pending, links = {}, {}
end

local function asked(place, pinfo, request)
  local queue = pending[place] or {}
  pending[place] = queue
  if #queue >= MOST_PENDING then
    table.remove(queue, 1)
  end
  queue[#queue + 1] = { request = request, frame = pinfo.number, at = pinfo.rel_ts }
end

local function answered(place, pinfo, request)
  local queue = pending[place] or {}
  for index, each in ipairs(queue) do
    if each.request == request then
      for _ = 1, index do
        table.remove(queue, 1)
      end
      links[each.frame] = { reply_in = pinfo.number }
      links[pinfo.number] = { reply_to = each.frame, latency = pinfo.rel_ts - each.at }
      return
    end
  end
end

local function add_link(tree, frame)
  local link = links[frame] or {}
  if link.reply_in then
    tree:add(own.reply_in, link.reply_in):set_generated()
  elseif link.reply_to then
    tree:add(own.reply_to, link.reply_to):set_generated()
    local seconds = math.floor(link.latency)
    local rest = math.floor((link.latency - seconds) * 1e9 + 0.5)
    tree:add(own.latency, NSTime.new(seconds, rest)):set_generated()
  end
end

-- Payloads ---------------------------------------------------------------------------------------------------------

local function words_of(limits)
  if limits.least == limits.most then
    return tostring(limits.least)
  end
  return "one of those from " .. limits.least .. " to " .. limits.most .. " that its fields fill"
end

-- Why `payload` has not this layout; nil if it has.
local function unfit(layout, payload, size)
  if size < layout.least or size > layout.most or (size - layout.least) % layout.step ~= 0 then
    return "payload size " .. size .. " must be " .. words_of(layout)
  elseif layout.regions then
    local count, present = payload(0, 4):le_uint(), (size - layout.regions.offset) / layout.regions.size
    if count ~= present then
      return string.format("num_regions is %d, must be %d, the number of regions in the payload", count, present)
    end
  elseif layout.sizes then
    local count, present = payload(0, 4):le_uint(), 0
    for at = layout.sizes.offset, size - 8, 8 do
      present = payload(at, 8):le_uint64() ~= UInt64.new(0) and present + 1 or present
    end
    if count ~= present then
      return string.format("num_regions is %d, must be %d, the number of sizes that are not 0", count, present)
    end
  elseif layout.rest and layout.rest.counted_at then
    local count, present = payload(layout.rest.counted_at, 4):le_uint(), size - layout.rest.offset
    if count ~= present then
      return string.format("size is %d, must be %d, the number of bytes in the payload", count, present)
    end
  end
  return nil
end

local function shown(part, range)
  local field = FIELDS[part.field]
  if field.kind == "bytes" then
    return range:bytes():tohex(true)
  elseif part.size == 8 then
    return field.hex and "0x" .. range:le_uint64():tohex():gsub("^0+(.)", "%1") or tostring(range:le_uint64())
  end
  return field.hex and string.format("0x%x", range:le_uint()) or tostring(range:le_uint())
end

-- `bit` is set in `value`: in arithmetic that Lua 5.1 has, too.
local function has(value, bit)
  return math.floor(value / bit) % 2 == 1
end

-- Fields for the bits that are set; their names.
local function add_bits(tree, bits, range)
  local names = {}
  for bit, name in ipairs(bits) do
    local half = range(bit > 32 and 4 or 0, 4):le_uint()
    if has(half, 2 ^ ((bit - 1) % 32)) then
      tree:add_le(fields[name], range)
      names[#names + 1] = FIELDS[name].name
    end
  end
  table.sort(names)
  return " {" .. table.concat(names, " ") .. "}"
end

-- Add the fields of a payload; them in words.
local function add_parts(tree, parts, payload)
  local words = {}
  for _, part in ipairs(parts) do
    local range = payload(part.offset, part.size)
    local item = tree:add_le(fields[part.field], range)
    local value = shown(part, range)
    if part.bits then
      value = value .. add_bits(item, BITS[part.bits], range)
    end
    for _, name in ipairs(part.more or {}) do
      item:add_le(fields[name], range)
    end
    words[#words + 1] = FIELDS[part.field].name .. "=" .. value
  end
  return table.concat(words, " ")
end

local function add_regions(tree, regions, payload, size)
  local words = {}
  for at = regions.offset, size - regions.size, regions.size do
    local range = payload(at, regions.size)
    local item = tree:add(vhostuser, range, "Region " .. #words)
    words[#words + 1] = "{" .. add_parts(item, regions.parts, range) .. "}"
    item:append_text(": " .. words[#words])
  end
  return " regions=[" .. table.concat(words, ", ") .. "]"
end

local function add_sizes(tree, sizes, payload, size)
  local words = {}
  for at = sizes.offset, size - 8, 8 do
    local range, shmid = payload(at, 8), (at - sizes.offset) / 8
    if range:le_uint64() ~= UInt64.new(0) then
      local value = shown({ field = sizes.size, size = 8 }, range)
      local item = tree:add(vhostuser, range, string.format("Region %d: %s bytes", shmid, value))
      item:add(fields[sizes.shmid], range, shmid):set_generated()
      item:add_le(fields[sizes.size], range)
      words[#words + 1] = string.format("%d=%s", shmid, value)
    end
  end
  return " sizes={" .. table.concat(words, " ") .. "}"
end

-- Add what a payload of this layout holds; it in words.
local function add_layout(tree, layout, payload, size)
  local words = #layout.parts > 0 and add_parts(tree, layout.parts, payload) or ""
  if layout.regions then
    words = words .. add_regions(tree, layout.regions, payload, size)
  elseif layout.sizes then
    words = words .. add_sizes(tree, layout.sizes, payload, size)
  elseif layout.rest and size > layout.rest.offset then
    local range = payload(layout.rest.offset, size - layout.rest.offset)
    tree:add(fields[layout.rest.field], range)
    words = words .. " " .. FIELDS[layout.rest.field].name .. "=" .. range(0, math.min(range:len(), 32)):bytes():tohex(true)
  end
  return words:match("^ ?(.*)$")
end

-- Messages ---------------------------------------------------------------------------------------------------------

local function header_fault(tvb, asks)
  if tvb:len() < HEADER_SIZE then
    return tvb:len() .. " bytes are no header, which has " .. HEADER_SIZE
  end
  local flags, size = tvb(4, 4):le_uint(), tvb(8, 4):le_uint()
  local version, place = flags % (HEADER.version_mask + 1), "request " .. tvb(0, 4):le_uint() .. ": header "
  if version ~= HEADER.version then
    return place .. "version " .. version .. " is not the protocol's version " .. HEADER.version
  elseif flags > HEADER.known then
    return place .. string.format("flags 0x%x has reserved bits set; known are 0x%x", flags, HEADER.known)
  elseif size > HEADER.most then
    return place .. "size " .. size .. " is larger than the largest payload, " .. HEADER.most
  elseif size ~= tvb:len() - HEADER_SIZE then
    return "the header says " .. size .. " bytes of payload, there are " .. tvb:len() - HEADER_SIZE
  elseif has(flags, HEADER.reply) == asks then
    return string.format("flags 0x%x: a %s the reply flag", flags, asks and "request with" or "reply without")
  end
  return nil
end

-- Empty where the specification says that it may be: GET_CONFIG's no, SET_MEM_TABLE in postcopy.
local function may_be_empty(rule, asks, channel)
  return channel == "front-end" and (asks and rule.name == "SET_MEM_TABLE" or not asks and rule.name == "GET_CONFIG")
end

-- Its payload: words, and what is wrong with it.
local function add_payload(tree, rule, asks, channel, tvb)
  local size = tvb:len() - HEADER_SIZE
  local payload = size > 0 and tvb(HEADER_SIZE, size) or nil
  if size == 0 and may_be_empty(rule, asks, channel) then
    return asks and "" or "refused", nil
  end
  local fault
  for _, layout in ipairs(asks and rule.asks or rule.answers) do
    local why = unfit(layout, payload, size)
    if not why then
      local words = add_layout(tree, layout, payload, size)
      if not layout.ack then
        return words:gsub("^value=", ""), nil
      end
      local status = tostring(payload(0, 8):le_int64())
      if status ~= "0" then
        tree:add_proto_expert_info(experts.refused, "refused with " .. status)
      end
      return status, nil
    end
    fault = fault or why
  end
  return "", rule.name .. " " .. fault
end

local function add_header(tree, tvb, name)
  local head = tree:add(vhostuser, tvb(0, HEADER_SIZE), "Header")
  head:add_le(own.request, tvb(0, 4)):append_text(" (" .. name .. ")")
  local flags = head:add_le(own.flags, tvb(4, 4))
  for _, each in ipairs({ "version", "reply", "need_reply" }) do
    flags:add_le(own[each], tvb(4, 4))
  end
  head:add_le(own.size, tvb(8, 4))
end

local function fd_words(fd)
  local inode = (fd.kind == "file" or fd.kind == "memfd") and " ino " .. fd.ino or ""
  return "fd=" .. fd.n .. "<" .. (fd.path ~= "" and fd.path or fd.kind) .. inode .. ">"
end

local function add_fds(tree, fds)
  local words = {}
  for _, fd in ipairs(fds) do
    words[#words + 1] = fd_words(fd)
    local item = tree:add(own.fd, words[#words])
    item:add(own.fd_number, tonumber(fd.n))
    item:add(own.fd_kind, fd.kind)
    item:add(own.fd_path, fd.path)
    item:add(own.fd_inode, UInt64.new(fd.ino))
    item:add(own.fd_size, UInt64.new(fd.size))
  end
  tree:add(own.fd_count, #fds):set_generated()
  return words
end

local function add_note(tree, note)
  tree:add(own.note, note)
  return "[" .. note .. "]"
end

-- What our comment says, in words; nothing if it makes no sense.
local function add_remarks(tree)
  local remarks = remarks_of()
  local ok, words = pcall(add_fds, tree, remarks.fds or {})
  words = ok and words or {}
  local noted, note = pcall(add_note, tree, remarks.note)
  words[#words + 1] = noted and note or nil
  return words
end

-- Bytes that are no message.
local function dissect_bytes(tree, tvb, pinfo)
  local fault = tvb:len() .. " bytes that are no message"
  tree:add(own.bytes, tvb())
  tree:add_proto_expert_info(experts.malformed, fault)
  pinfo.cols.info = table.concat({ fault, unpack(add_remarks(tree)) }, " ")
end

local function dissect(channel, whole, tvb, pinfo, root)
  local sender = SENDERS[pinfo.p2p_dir] or "unknown"
  local asks, connection = sender == channel, pinfo.src_port
  pinfo.cols.protocol = "vhost-user"
  pinfo.cols.src = sender
  pinfo.cols.dst = sender == "front-end" and "back-end" or "front-end"
  local tree = root:add(vhostuser, tvb())
  tree:add(own.channel, channel):set_generated()
  tree:add(own.sender, sender):set_generated()
  tree:add(own.connection, connection):set_generated()
  if not whole then
    dissect_bytes(tree, tvb, pinfo)
    return
  end
  local request = tvb:len() >= HEADER_SIZE and tvb(0, 4):le_uint() or -1
  local rule = REQUESTS[channel][request]
  local name = rule and rule.name or "request " .. request
  local fault, words = header_fault(tvb, asks), ""
  tree:add(own.message, name):set_generated()
  tree:append_text(", " .. name .. (asks and "" or " (reply)"))
  if tvb:len() >= HEADER_SIZE then
    add_header(tree, tvb, name)
  end
  if not fault and rule then
    words, fault = add_payload(tree, rule, asks, channel, tvb)
  elseif not fault and (asks or tvb:len() ~= HEADER_SIZE + 8) then
    fault = name .. " is unknown on the " .. channel .. " channel"
  elseif not fault then
    tree:add_le(fields["vhostuser.ack"], tvb(HEADER_SIZE, 8))
    words = tostring(tvb(HEADER_SIZE, 8):le_int64())
  end
  if fault then
    tree:add_proto_expert_info(experts.malformed, fault)
    if tvb:len() > HEADER_SIZE then
      tree:add(own.payload, tvb(HEADER_SIZE))
    end
  end
  local flags = tvb:len() >= HEADER_SIZE and tvb(4, 4):le_uint() or 0
  local needs = has(flags, HEADER.need_reply)
  if not pinfo.visited then
    local place = connection .. channel
    if not asks then
      answered(place, pinfo, request)
    elseif needs or not (rule and #rule.answers == 1 and rule.answers[1].ack) then
      asked(place, pinfo, request)
    end
  end
  add_link(tree, pinfo.number)
  local said = { name, asks and "" or "=", words, unpack(add_remarks(tree)) }
  said[#said + 1] = asks and needs and "need_reply" or ""
  said[#said + 1] = fault and "[" .. fault .. "]" or ""
  pinfo.cols.info = table.concat(said, " "):gsub("  +", " "):gsub(" $", "")
end

-- Packets name the dissector of their channel, or that of its bytes; the fields are all `vhostuser`'s.
for name, kind in pairs(DISSECTORS) do
  local proto = name == "vhostuser" and vhostuser or Proto(name, "vhost-user, " .. name)
  function proto.dissector(tvb, pinfo, root)
    dissect(kind.channel, kind.whole, tvb, pinfo, root)
    return tvb:len()
  end
end

-- What is no message -----------------------------------------------------------------------------------------------

local events = Proto(EVENTS, "vhost-user, rings and remarks")
local as_json = Dissector.get("json")

local EVENT_WORDS = {
  offered = function(event)
    return "queue " .. event.queue .. ": request " .. event.head .. " offered, " .. #event.buffers .. " buffers"
  end,
  used = function(event)
    return "queue " .. event.queue .. ": request " .. event.head .. " used, " .. event.written .. " bytes written"
  end,
  remark = function(event)
    return event.about .. (event.text ~= "" and ": " .. event.text or "")
  end,
}

local function add_event(tree, event)
  for _, name in ipairs({ "queue", "head", "written" }) do
    if event[name] then
      tree:add(own[name], UInt64.new(event[name]))
    end
  end
  for _, name in ipairs({ "event", "about", "text" }) do
    if event[name] then
      tree:add(own[name], event[name])
    end
  end
  return EVENT_WORDS[event.event](event)
end

function events.dissector(tvb, pinfo, root)
  local tree = root:add(vhostuser, tvb())
  as_json:call(tvb, pinfo, root)
  pinfo.cols.protocol = "vhost-user"
  tree:add(own.connection, pinfo.src_port):set_generated()
  local ok, words = pcall(add_event, tree, json(tvb():string()))
  pinfo.cols.info = ok and words or "a piece of an event"
  return tvb:len()
end
