#!/usr/bin/env python3
"""Recomputes epochs of a Nave market from their evidence bundles, as docs/settlement.md says.

    nave_audit.py [--json] BUNDLE [BUNDLE…]

Bundles are .jsonl or .jsonl.gz, in the order of their epochs. Exit status: 0 everything follows from the evidence,
1 something does not (it is named), 2 a bundle could not be read or the call was wrong. Needs Python 3.9, nothing else.
"""

import gzip
import hashlib
import json
import re
import sys
import zlib
from collections import defaultdict
from functools import lru_cache
from math import isqrt

PPM, HOUR_MS, DAY_MS, GIB, WEIGHTS = 10**6, 3_600_000, 86_400_000, 2**30, 65535
LINE_BYTES_MAX = 4 << 20
BREACHES = {"xid", "failed_retest", "early_reclaim", "below_band", "unreachable", "host_lost"}

class Difference(Exception):
    """Where a bundle says something else than follows: line, record, field, what it says, what follows."""

    def __str__(self):
        line, record, field, says, follows = self.args
        return f"line {line}{record and ', '}{record}: " + (f"{field} is {says}, and should be {follows}" if field else follows)

# Ed25519 (RFC 8032), verification only, with points as (X, Y, Z, T) where x = X/Z, y = Y/Z, xy = T/Z.

P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P

def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]), (p[1] + p[0]) * (q[1] + q[0])
    c, d = 2 * p[3] * q[3] * D, 2 * p[2] * q[2]
    e, f, g, h = (b - a) % P, (d - c) % P, (d + c) % P, (b + a) % P
    return e * f % P, g * h % P, f * g % P, e * h % P

def point(data):
    """The point that 32 bytes stand for, or None."""
    y = int.from_bytes(data, "little")
    odd, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * v**3 * pow(u * v**7, (P - 5) // 8, P) % P
    if v * x * x % P != u:
        x = x * pow(2, (P - 1) // 4, P) % P
    if v * x * x % P != u or (x == 0 and odd):
        return None
    x = P - x if x & 1 != odd else x
    return x, y, 1, x * y % P

def multiples(p):
    """For each of 64 digits of a number to the base 16, what each value of it adds."""
    table = []
    for _ in range(64):
        row = [(0, 1, 1, 0)]
        for _ in range(16):
            row.append(add(row[-1], p))
        p = row.pop()
        table.append(row)
    return table

def times(table, number):
    total = table[0][0]
    for at, row in enumerate(table):
        total = add(total, row[number >> 4 * at & 15])
    return total

BASE = multiples(point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little")))

@lru_cache(maxsize=4)
class Key:
    """A public key whose multiples are at hand."""

    def __init__(self, data):
        self.data = data
        found = point(data) if len(data) == 32 else None
        self.table = found and multiples((P - found[0], found[1], 1, P - found[3]))

    def signed(self, signature, message):
        if self.table is None or len(signature) != 64:
            return False
        s = int.from_bytes(signature[32:], "little")
        if s >= ORDER:
            return False
        h = int.from_bytes(hashlib.sha512(signature[:32] + self.data + message).digest(), "little") % ORDER
        x, y, z, _ = add(times(BASE, s), times(self.table, h))
        z = pow(z, P - 2, P)
        return (y * z % P | (x * z % P & 1) << 255).to_bytes(32, "little") == signature[:32]

# The form of a bundle. A field is `name` or `name?` (may be absent) and what it holds: t(ext), n(ot negative),
# i(nteger), w(eight), b(ool), p(art: up to 10⁶), s(ome: above zero), a list of lists of such in brackets, or one of words.

FORMS = {
    "header": "chain t, closed_ms n, emission n, emission_source t, emissions [n], epoch n, format n, market t, "
              "opened_ms n, sink t",
    "params": "announced_ms n, breach_on_demand_ppm p, breach_spot_ppm p, collateral_ms n, confirm_ms n, cooldown_ms n, "
              "demotion_ms n, demotion_ppm n, effective_epoch n, gap_ms n, gib_hour n, local_emission n, margin_ppm p, "
              "notice_epochs n, obliged_ms n, outage_hosts n, outage_ppm p, penalty_ms n, price_band_ppm p, "
              "prior_device_ms s, probation_ms n, sink_alarm_ppm p, smoothing s, standby_from_ppm p, "
              "standby_targets [tn], standby_top_ppm p, standby_until_ppm p, start_promise_ms n, vcpu_hour n, version n, "
              "vest_ms s, window_days s",
    "class": "baseline? n, baseline_at_ms? n, baseline_source? t, class t, devices n, leased_milli n",
    "miner": "banned b, carry i, collateral n, days [nnn], demoted_until_ms n, hotkey t, verified_hosts n, "
             "vesting [nnnn], weight w",
    "verdict": "at_ms n, host t, hotkey t, passed b, reason? t, task t, verdict t",
    "event": "at_ms n, blame host|platform|customer, confirmed_by? report|retest|absence, detail t, event t, from_ms n, "
             "host t, hotkey t, kind start_late|heartbeat_gap|xid|failed_retest|early_reclaim|below_band|unreachable|"
             "host_lost, lease? t, signature t, until_ms n",
    "lease": "baseline? n, charged n, class? t, closed_ms n, customer t, gib_hour n, gpu_hour n, host t, hotkey t, job t, "
             "lease t, memory n, milli_cpu n, milli_gpu n, outcome t, placed_ms n, related? t, term on_demand|spot, "
             "used_ms n, vcpu_hour n",
    "idle": "class t, device_ms n, gpu_hour n, host t, hotkey t, obliged_since_ms n",
    "pay": "bids n, bound_ppm n, breaches n, carry i, cash n, collateral n, days [nnn], demoted_until_ms n, forfeited n, "
           "granted n, hotkey t, penalty n, penalty_collateral n, penalty_held n, realised n, standby n, used n, "
           "vested n, vesting [nnnn], weight w",
    "result": "cash n, credits n, granted n, sink n, smoothed n, used n, vested n, weights [tw]",
    "seal": "epoch n, lines n, market t, signature t",
}
KINDS = list(FORMS)
IDS = {"class": ["class"], "miner": ["hotkey"], "verdict": ["verdict"], "event": ["event"], "lease": ["lease"],
       "idle": ["host", "class"], "pay": ["hotkey"]}
FORMS = {kind: [field.split(" ") for field in fields.split(", ")] for kind, fields in FORMS.items()}
RANGES = {"n": (0, 2**63), "i": (-(2**63), 2**63), "w": (0, 65536), "p": (0, PPM + 1), "s": (1, 2**63)}

def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

def holds(form, value):
    if form in RANGES:
        return type(value) is int and RANGES[form][0] <= value < RANGES[form][1]
    if form == "b":
        return type(value) is bool
    if form[0] != "[":
        return type(value) is str and (form == "t" or value in form.split("|"))
    parts = form[1:-1]
    if type(value) is not list or len(parts) == 1:
        return type(value) is list and all(holds(parts, each) for each in value)
    return all(type(each) is list and len(each) == len(parts) and all(map(holds, parts, each)) for each in value)

def has_form(kind, body):
    absent = 0
    for name, form in FORMS[kind]:
        if name[-1] == "?" and name[:-1] not in body:
            absent += 1
        elif not holds(form, body.get(name.rstrip("?"))):
            return False
    return len(body) == len(FORMS[kind]) - absent and is_sound(kind, body)

def rises(values):
    return all(a < b for a, b in zip(values, values[1:]))

def is_sound(kind, body):
    """Whether a record of the right form makes sense by itself."""
    rules = {
        "header": lambda: body["format"] == 1 and body["opened_ms"] <= body["closed_ms"],
        "params": lambda: body["price_band_ppm"] > 0 and body["standby_from_ppm"] < body["standby_until_ppm"]
        and rises([name.encode() for name, _ in body["standby_targets"]]),
        "class": lambda: len({name in body for name in ("baseline", "baseline_at_ms", "baseline_source")}) == 1,
        "miner": lambda: rises([day[0] for day in body["days"]]) and all(
            from_ms < until_ms and vested <= amount for from_ms, until_ms, amount, vested in body["vesting"]),
        "verdict": lambda: body["passed"] == ("reason" not in body),
        "event": lambda: body["from_ms"] <= body["until_ms"],
        "lease": lambda: body["placed_ms"] <= body["closed_ms"],
    }
    return rules.get("miner" if kind == "pay" else kind, lambda: True)()

class Bundle:
    """The lines of a bundle, each checked for everything but what follows from the others."""

    def __init__(self, path, head):
        self.path, self.seq, self.number, self.prev = path, 0, 1, head
        self.last, self.key, self.header, self.record = (-1, []), None, None, ""

    def lines(self):
        """Yields (kind, body). At the end `prev` is the head."""
        with (gzip.open if str(self.path).endswith(".gz") else open)(self.path, "rb") as file:
            while True:
                self.record, self.number = "", self.seq + 1
                line = file.readline(LINE_BYTES_MAX)
                if line and line[-1:] != b"\n":
                    self.refuse("has no end")
                if self.last[0] == KINDS.index("seal"):
                    return self.refuse("comes after the seal") if line else None
                if not line:
                    self.refuse("the bundle ends without a seal")
                yield self.line(line[:-1])

    def line(self, line):
        kind, body, prev, seq = self.parsed(line) or self.refuse("is not the canonical form of a record")
        ids = [body[name] for name in IDS.get(kind, [])]
        self.record = " ".join([kind, *filter(None, ids)])
        self.same("seq", seq, self.seq)
        if self.prev is not None:
            self.same("prev", prev, self.prev, str)
        here = KINDS.index(kind), [part.encode() for part in ids]
        skips = {"header", "params", "result"} & set(KINDS[self.last[0] + 1:here[0]])
        if here <= self.last or skips:
            self.refuse("cannot come here")
        self.last = here
        self.signed(kind, body, prev)
        self.prev = hashlib.sha256(line).hexdigest()
        self.seq += 1
        return kind, body

    @staticmethod
    def parsed(line):
        try:
            found = json.loads(line.decode())
            if type(found) is not dict or canonical(found) != line or set(found) != {"body", "kind", "prev", "seq"}:
                return None
        except (ValueError, RecursionError):
            return None
        body, kind, prev, seq = (found[name] for name in ("body", "kind", "prev", "seq"))
        if type(body) is not dict or type(kind) is not str or kind not in KINDS or not holds("i", seq):
            return None
        if type(prev) is not str or canonical(prev) != b'"%s"' % prev.encode() or not has_form(kind, body):
            return None
        return kind, body, prev, seq

    def signed(self, kind, body, prev):
        if kind == "header":
            self.header, self.key = body, Key(digits(body["market"], 32))
        elif kind == "event":
            rest = {name: value for name, value in body.items() if name != "signature"}
            self.check(body["signature"], b"nave event 1\n" + canonical(rest))
        elif kind == "seal":
            market, epoch = self.header["market"], self.header["epoch"]
            self.same("epoch", body["epoch"], epoch)
            self.same("lines", body["lines"], self.seq)
            self.same("market", body["market"], market, str)
            self.check(body["signature"], f"nave evidence 1\n{market}\n{epoch}\n{self.seq}\n{prev}".encode())

    def check(self, signature, message):
        if not self.key.signed(digits(signature, 64), message):
            self.refuse("is not signed by the market")

    def same(self, field, says, follows, text=lambda value: canonical(value).decode()):
        if says != follows:
            raise Difference(self.number, self.record, field, text(says), text(follows))

    def refuse(self, what):
        raise Difference(self.number, self.record, "", "", what)

def digits(text, length):
    """Bytes in hexadecimal, in small letters; b"" where it is something else."""
    return bytes.fromhex(text) if re.fullmatch("[0-9a-f]{%d}" % (2 * length), text) else b""

# What follows from the evidence.

class Unsettled(Exception):
    """Evidence that no pay follows from."""

def fit(value):
    if not -(2**63) <= value < 2**63:
        raise Unsettled("a number does not fit 63 bits")
    return value

def charge(ms, *parts):
    """What a time costs, where each part is an amount, its price and its scale."""
    return fit(ms * sum(amount * price * scale for amount, price, scale in parts) // (HOUR_MS * 1000 * GIB))

class Miner:
    def __init__(self, state):
        self.state, self.gone = state, state["banned"] or state["verified_hosts"] == 0
        self.used = self.bids = self.penalty = self.standby = self.device_ms = self.breaches = 0

class Epoch:
    """Takes the evidence of an epoch in its order, and says what comes of it."""

    def __init__(self, header, params):
        self.head, self.params, self.targets = header, params, dict(params["standby_targets"])
        self.classes, self.miners, self.faults, self.broken_ms = {}, {}, {}, {}
        self.idle, self.delivered, self.credits = defaultdict(list), defaultdict(lambda: [0, 0]), 0
        if params["effective_epoch"] > header["epoch"]:
            raise Unsettled("these parameters hold from a later epoch on")
        history = [*header["emissions"], header["emission"]]
        if len(history) > params["smoothing"]:
            raise Unsettled("there are more emissions than are averaged")
        self.smoothed = fit(sum(history) // len(history))

    def take(self, kind, body):
        if kind == "class":
            self.classes[body["class"]] = body
        elif kind == "miner":
            self.miners[body["hotkey"]] = Miner(body)
        elif kind != "verdict":
            if body["hotkey"] not in self.miners:
                raise Unsettled(f"there is no miner {body['hotkey']}")
            getattr(self, f"take_{kind}")(body, self.miners[body["hotkey"]])

    def take_event(self, event, miner):
        counts, breach = "confirmed_by" in event and event["blame"] == "host", event["kind"] in BREACHES
        if counts:
            miner.breaches += breach
            self.broken_ms[event["host"]] = max(self.broken_ms.get(event["host"], 0), event["at_ms"])
        if "lease" in event:
            faults = self.faults.setdefault(event["lease"], [event["host"], event["hotkey"], 0, 0])
            self.same_host(faults, event)
            if counts:
                faults[2] = fit(faults[2] + event["until_ms"] - event["from_ms"])
                faults[3] += breach

    @staticmethod
    def same_host(faults, body):
        if faults[:2] != [body["host"], body["hotkey"]]:
            raise Unsettled(f"events of lease {body['lease']} are of another host")

    def worth(self, lease, ms):
        gpu, cpu, memory = lease["milli_gpu"], lease["milli_cpu"], lease["memory"]
        vcpu_hour, gib_hour = lease["vcpu_hour"], lease["gib_hour"]
        if "baseline" in lease and gpu > 0:
            most = charge(ms, (gpu, lease["baseline"], GIB))
            return min(most, charge(ms, (gpu, lease["gpu_hour"], GIB), (cpu, vcpu_hour, GIB), (memory, gib_hour, 1000)))
        return charge(ms, (cpu, min(vcpu_hour, self.params["vcpu_hour"]), GIB),
                      (memory, min(gib_hour, self.params["gib_hour"]), 1000))

    def take_lease(self, lease, miner):
        params, used_ms, charged = self.params, lease["used_ms"], lease["charged"]
        faults = self.faults.pop(lease["lease"], [lease["host"], lease["hotkey"], 0, 0])
        self.same_host(faults, lease)
        lost, breaches = faults[2:]
        adherence = used_ms * PPM // (used_ms + lost) if used_ms + lost else PPM
        adherence = max(0, adherence - breaches * params[f"breach_{lease['term']}_ppm"])
        worth = self.worth(lease, used_ms)
        if breaches:
            miner.penalty += fit(breaches * self.worth(lease, params["penalty_ms"]))
        if "related" in lease:
            return
        kept, keep = charged * adherence // PPM, PPM - params["margin_ppm"]
        earned = min(worth * adherence // PPM, kept)
        used = earned * keep // PPM
        miner.used += used
        miner.bids += (kept - earned) * keep // PPM
        gpu, cpu = lease["milli_gpu"], lease["milli_cpu"]
        miner.device_ms += fit(used_ms * gpu // 1000 if gpu else used_ms * cpu // 16000)
        self.credits += charged - kept
        if lease.get("class") in self.classes:
            of_class = self.delivered[lease["class"]]
            of_class[0] += fit(used_ms * lease["milli_gpu"] // 1000)
            of_class[1] += used

    def take_idle(self, idle, miner):
        miner.device_ms += idle["device_ms"]
        since = max(idle["obliged_since_ms"], self.broken_ms.get(idle["host"], 0))
        if not miner.gone and since + self.params["obliged_ms"] <= self.head["closed_ms"]:
            self.idle[idle["class"]].append(idle)

    def standby(self, name, class_):
        params, lines, (device_ms, used) = self.params, self.idle[name], map(fit, self.delivered[name])
        baseline = class_.get("baseline", 0)
        room = max(0, baseline * device_ms // HOUR_MS - used)
        if "baseline" not in class_ or name not in self.targets:
            return
        most = fit(self.targets[name] * (self.head["closed_ms"] - self.head["opened_ms"]))
        all_ms, rate, earned = fit(sum(line["device_ms"] for line in lines)), self.standby_rate(class_), []
        for line in lines:
            ms, below = line["device_ms"], max(0, baseline - line["gpu_hour"])
            ms = ms * most // all_ms if all_ms > most else ms
            factor = min(PPM, below * PPM * PPM // (baseline * params["price_band_ppm"])) if below else 0
            earned.append(fit(ms * rate * factor // (HOUR_MS * PPM)))
        sum_ = fit(sum(earned))
        for line, amount in zip(lines, earned):
            miner = self.miners[line["hotkey"]]
            miner.standby = fit(miner.standby + (amount * room // sum_ if sum_ > room else amount))

    def standby_rate(self, class_):
        if class_["devices"] == 0:
            return 0
        from_, until = self.params["standby_from_ppm"], self.params["standby_until_ppm"]
        above = max(0, min(class_["leased_milli"] * 1000 // class_["devices"], until) - from_)
        return fit(class_["baseline"] * self.params["standby_top_ppm"] * above // ((until - from_) * PPM))

    def finish(self):
        """The pay lines and the result."""
        if self.faults:
            raise Unsettled(f"there is no lease {min(self.faults, key=str.encode)}, and there are events of it")
        for name, class_ in self.classes.items():
            self.standby(name, class_)
        lines = {hotkey: self.balance(miner) for hotkey, miner in self.miners.items()}
        owed = {hotkey: max(line["carry"], 0) if self.miners[hotkey].state["verified_hosts"] else 0
                for hotkey, line in lines.items()}
        all_owed, all_vested = sum(owed.values()), sum(line["vested"] for line in lines.values())
        rest, values = self.smoothed - all_owed, {}
        for hotkey, line in lines.items():
            own, cash = owed[hotkey], 0
            if rest >= 0:
                line["granted"] = line["vested"] * rest // all_vested if all_vested > rest else line["vested"]
            else:
                own = own * self.smoothed // all_owed
                cash = min(owed[hotkey] - own, line["used"])
            line["carry"] = fit(line["carry"] + line["granted"] - cash)
            line["cash"] = fit(line["bids"] + cash)
            values[hotkey] = fit(own + line["granted"])
        unearned, sink = self.smoothed - sum(values.values()), self.head["sink"]
        values[sink] = fit(values.get(sink, 0) + unearned)
        weights = shares(values, self.smoothed, sink)
        for hotkey, line in lines.items():
            line["weight"] = weights.get(hotkey, 0)
        totals = {name: fit(sum(line[name] for line in lines.values())) for name in ("cash", "granted", "used", "vested")}
        return lines, {**totals, "credits": fit(self.credits), "sink": unearned, "smoothed": self.smoothed,
                       "weights": [[hotkey, weight] for hotkey, weight in weights.items()]}

    def balance(self, miner):
        """A pay line without what depends on others; its carry is the balance before that."""
        state, closed_ms = miner.state, self.head["closed_ms"]
        realised = fit(state["weight"] * self.head["emission"] // WEIGHTS)
        penalty, (vested, forfeited, vesting) = fit(miner.penalty), self.vest(miner)
        balance = state["carry"] - realised + fit(miner.used)
        held = min(penalty, max(balance, 0))
        taken = min(penalty - held, state["collateral"])
        balance -= penalty - taken
        settles = min(vested, max(-balance, 0))
        if miner.standby > 0:
            vesting.append([closed_ms, fit(closed_ms + self.params["vest_ms"]), miner.standby, 0])
        return {"hotkey": state["hotkey"], "used": miner.used, "bids": fit(miner.bids), "penalty": penalty,
                "penalty_held": held, "penalty_collateral": taken, "realised": realised, "standby": miner.standby,
                "carry": fit(balance + settles), "collateral": state["collateral"] - taken, "vested": vested - settles,
                "granted": 0, "forfeited": forfeited, "vesting": vesting, **self.window(miner)}

    def vest(self, miner):
        """What of its standby is due now, what is lost, and what goes on vesting."""
        due = lost = 0
        left, closed_ms = [], self.head["closed_ms"]
        for from_ms, until_ms, amount, vested in miner.state["vesting"]:
            if miner.gone:
                lost += amount - vested
                continue
            passed = max(0, min(closed_ms, until_ms) - from_ms)
            so_far = max(vested, amount * passed // (until_ms - from_ms))
            due += so_far - vested
            if closed_ms < until_ms:
                left.append([from_ms, until_ms, amount, so_far])
        return fit(due), fit(lost), left

    def window(self, miner):
        """Its days and breaches, and what they show."""
        params, today = self.params, self.head["closed_ms"] // DAY_MS
        days = {day: (ms, breaches) for day, ms, breaches in miner.state["days"] if day > today - params["window_days"]}
        if miner.device_ms or miner.breaches:
            ms, breaches = days.get(today, (0, 0))
            days[today] = fit(ms + miner.device_ms), fit(breaches + miner.breaches)
        k, h = sum(of_day[1] for of_day in days.values()) + 1, sum(of_day[0] for of_day in days.values())
        low = max(0, k * PPM + 568_700 - isqrt(k * 2_706_025_000_000))
        bound, until = fit(low * HOUR_MS // (h + params["prior_device_ms"])), miner.state["demoted_until_ms"]
        if bound > params["demotion_ppm"]:
            until = max(until, fit(self.head["closed_ms"] + params["demotion_ms"]))
        return {"days": [[day, *days[day]] for day in sorted(days)], "breaches": miner.breaches, "bound_ppm": bound,
                "demoted_until_ms": until}

def shares(values, total, sink):
    """65535 in proportion to the values, by largest remainder."""
    if total == 0:
        return {sink: WEIGHTS}
    floors = {hotkey: value * WEIGHTS // total for hotkey, value in values.items()}
    left = WEIGHTS - sum(floors.values())
    order = sorted(values, key=lambda hotkey: (-(values[hotkey] * WEIGHTS % total), hotkey.encode()))
    for hotkey in order[:left]:
        floors[hotkey] += 1
    return {hotkey: floors[hotkey] for hotkey in sorted(floors, key=str.encode) if floors[hotkey]}

# The audit.

FRESH = {"carry": 0, "days": [], "demoted_until_ms": 0, "vesting": [], "weight": 0}

class Audit:
    """One bundle, after the audit of the epoch before, if there was one."""

    def __init__(self, path, before=None):
        self.bundle, self.before, self.epoch, self.pays = Bundle(path, before and before.bundle.prev), before, None, {}
        self.follow = None
        left = {hotkey: {name: pay[name] for name in FRESH} for hotkey, pay in (before.pays if before else {}).items()}
        self.expected = {hotkey: state for hotkey, state in left.items() if state != FRESH}
        for kind, body in self.bundle.lines():
            try:
                self.take(kind, body)
            except Unsettled as error:
                self.bundle.refuse(str(error))
        self.before = None

    def take(self, kind, body):
        if kind in ("header", "params", "pay", "result"):
            getattr(self, kind)(body)
        elif kind != "seal":
            if kind == "miner" and self.before:
                self.compare({name: body[name] for name in FRESH}, self.expected.pop(body["hotkey"], FRESH))
            self.epoch.take(kind, body)

    def compare(self, says, follows):
        for name in sorted(says):
            self.bundle.same(name, says[name], follows[name])

    def header(self, body):
        if self.before:
            header = self.before.bundle.header
            self.bundle.same("epoch", body["epoch"], header["epoch"] + 1)
            self.bundle.same("market", body["market"], header["market"])
            self.bundle.same("opened_ms", body["opened_ms"], max(body["opened_ms"], header["closed_ms"]))

    def params(self, body):
        header = self.bundle.header
        if self.before:
            then = self.before.bundle.header
            emissions = [*then["emissions"], then["emission"]]
            kept = min(body["smoothing"] - 1, len(emissions))
            self.bundle.same("emissions", header["emissions"], emissions[len(emissions) - kept:])
            if body["version"] == self.before.epoch.params["version"]:
                self.compare(body, self.before.epoch.params)
        self.epoch = Epoch(header, body)

    def finish(self):
        if self.follow is None:
            if self.expected:
                missing = min(self.expected, key=str.encode)
                self.bundle.refuse(f"comes, and the miner {missing} of the epoch before did not")
            lines, self.totals = self.epoch.finish()
            self.follow = iter(lines.values())

    def pay(self, body):
        self.finish()
        follows = next(self.follow, None) or self.bundle.refuse("is of no miner")
        self.bundle.same("hotkey", body["hotkey"], follows["hotkey"])
        self.compare(body, follows)
        self.pays[body["hotkey"]] = body

    def result(self, body):
        self.finish()
        missing = next(self.follow, None)
        if missing:
            self.bundle.refuse(f"comes before the pay of {missing['hotkey']}")
        self.compare(body, self.totals)

def main(arguments):
    as_json, paths = "--json" in arguments, [path for path in arguments if path != "--json"]
    if not paths or any(path.startswith("-") for path in paths):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    before = None
    for path in paths:
        try:
            before = Audit(path, before)
        except Difference as difference:
            names = ("line", "record", "field", "says", "follows")
            print(canonical(dict(zip(names, difference.args), bundle=path)).decode() if as_json else f"{path}: {difference}")
            return 1
        except (OSError, EOFError, zlib.error) as error:
            print(f"{path}: the bundle cannot be read: {error}", file=sys.stderr)
            return 2
        bundle, epoch = before.bundle, before.bundle.header["epoch"]
        found = {"bundle": path, "epoch": epoch, "lines": bundle.seq, "head": bundle.prev, "result": before.totals}
        print(canonical(found).decode() if as_json else
              f"{path}: epoch {epoch} follows from its {bundle.seq} lines; its head is {bundle.prev}")
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
