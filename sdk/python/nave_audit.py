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
from functools import lru_cache, reduce
from itertools import accumulate
from math import isqrt
from types import SimpleNamespace

PPM, HOUR_MS, DAY_MS, GIB, WEIGHTS, LINE_BYTES_MAX = 10**6, 3_600_000, 86_400_000, 2**30, 65535, 2**22
BREACHES = {"xid", "failed_retest", "early_reclaim", "below_band", "unreachable", "host_lost"}
FRESH = {"carry": 0, "days": [], "demoted_until_ms": 0, "vesting": [], "weight": 0}

class Difference(Exception):
    """Where a bundle says something else than follows: line, record, field, what it says, what follows."""
    def __str__(self):
        line, record, field, says, follows = self.args
        what = f"{field} is {says}, and should be {follows}" if field else follows
        return f"line {line}{record and ', '}{record}: {what}"

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
    odd, y = divmod(int.from_bytes(data, "little"), 2**255)
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * v**3 * pow(u * v**7, (P - 5) // 8, P) % P
    if v * x * x % P != u:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or v * x * x % P != u or (x == 0 and odd):
        return None
    x = P - x if x & 1 != odd else x
    return x, y, 1, x * y % P

def multiples(p):
    """For each of 64 digits of a number to the base 16, what each value of it adds."""
    table = []
    for _ in range(64):
        *row, p = accumulate([p] * 16, add, initial=(0, 1, 1, 0))
        table.append(row)
    return table

def times(table, number):
    return reduce(add, (row[number >> 4 * at & 15] for at, row in enumerate(table)))

BASE = multiples(point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little")))

@lru_cache(maxsize=4)
class Key:
    """A public key whose multiples are at hand."""
    def __init__(self, data):
        self.data = data
        found = point(data) if len(data) == 32 else None
        self.table = found and multiples((P - found[0], found[1], 1, P - found[3]))

    def signed(self, signature, message):
        s = int.from_bytes(signature[32:], "little")
        if self.table is None or len(signature) != 64 or s >= ORDER:
            return False
        h = int.from_bytes(hashlib.sha512(signature[:32] + self.data + message).digest(), "little") % ORDER
        x, y, z, _ = add(times(BASE, s), times(self.table, h))
        z = pow(z, P - 2, P)
        return (y * z % P | (x * z % P & 1) << 255).to_bytes(32, "little") == signature[:32]

# The form of a bundle: of each kind what its fields hold, and their names. Forms are t(ext), n(ot negative), i(nteger),
# w(eight), p(art: up to 10⁶), s(ome: above zero), b(ool), o(bject), one of words, [list of any length], (list of what
# each letter says). Where a question mark follows, the fields may be absent.
FORMS = {
    "header": "t chain emission_source market sink, n closed_ms emission epoch format opened_ms, [n] emissions",
    "params": "n announced_ms collateral_ms confirm_ms cooldown_ms demotion_ms demotion_ppm effective_epoch gap_ms "
              "gib_hour local_emission notice_epochs obliged_ms outage_hosts penalty_ms probation_ms start_promise_ms "
              "vcpu_hour version, s prior_device_ms smoothing vest_ms window_days, [(tn)] standby_targets, "
              "p breach_on_demand_ppm breach_spot_ppm margin_ppm outage_ppm price_band_ppm sink_alarm_ppm "
              "standby_from_ppm standby_top_ppm standby_until_ppm",
    "class": "t class, n devices leased_milli, n? baseline baseline_at_ms, t? baseline_source",
    "miner": "t hotkey, b banned, i carry, w weight, n collateral demoted_until_ms verified_hosts, [(nnn)] days, "
             "[(nnnn)] vesting",
    "verdict": "t host hotkey task verdict, n at_ms, b passed, t? reason",
    "event": "t detail event host hotkey signature, n at_ms from_ms until_ms, host|platform|customer blame, "
             f"start_late|heartbeat_gap|{'|'.join(BREACHES)} kind, report|retest|absence? confirmed_by, t? lease",
    "lease": "t customer host hotkey job lease outcome, on_demand|spot term, n? baseline, t? class related, "
             "n charged closed_ms gib_hour gpu_hour memory milli_cpu milli_gpu placed_ms used_ms vcpu_hour",
    "idle": "t class host hotkey, n device_ms gpu_hour obliged_since_ms",
    "pay": "t hotkey, i carry, w weight, [(nnn)] days, [(nnnn)] vesting, n bids bound_ppm breaches cash collateral "
           "demoted_until_ms forfeited granted penalty penalty_collateral penalty_held realised standby used vested",
    "result": "n cash credits granted sink smoothed used vested, [(tw)] weights",
    "seal": "n epoch lines, t market signature",
}
KINDS = list(FORMS)
FORMS["line"] = "o body, t kind prev, i seq"
FORMS = {kind: [fields.split(" ") for fields in forms.split(", ")] for kind, forms in FORMS.items()}
FORMS = {kind: {name: form for form, *names in forms for name in names} for kind, forms in FORMS.items()}
NEEDED = {kind: {name for name, form in forms.items() if form[-1] != "?"} for kind, forms in FORMS.items()}
IDS = {"miner": ["hotkey"], "idle": ["host", "class"], "pay": ["hotkey"]}  # Elsewhere the field of its own name
RANGES = {"n": (0, 2**63), "i": (-(2**63), 2**63), "w": (0, 65536), "p": (0, PPM + 1), "s": (1, 2**63)}
TYPES = {"t": str, "b": bool, "o": dict}
SOUND = {
    "header": lambda body: body["format"] == 1 and body["opened_ms"] <= body["closed_ms"],
    "params": lambda body: body["price_band_ppm"] > 0 and body["standby_from_ppm"] < body["standby_until_ppm"]
    and rises(body["standby_targets"]),
    "class": lambda body: len({name in body for name in ("baseline", "baseline_at_ms", "baseline_source")}) == 1,
    "miner": lambda body: rises(body["days"]) and all(
        from_ms < until_ms and vested <= amount for from_ms, until_ms, amount, vested in body["vesting"]),
    "verdict": lambda body: body["passed"] == ("reason" not in body),
    "event": lambda body: body["from_ms"] <= body["until_ms"],
    "lease": lambda body: body["placed_ms"] <= body["closed_ms"],
}
SOUND["pay"] = SOUND["miner"]

def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

def rises(rows):
    return all(a[0] < b[0] for a, b in zip(rows, rows[1:]))

def holds(form, value):
    if form in RANGES:
        return type(value) is int and RANGES[form][0] <= value < RANGES[form][1]
    if form in TYPES:
        return type(value) is TYPES[form]
    if form[0] == "[":
        return type(value) is list and all(holds(form[1:-1], each) for each in value)
    if form[0] == "(":
        return type(value) is list and len(value) == len(form) - 2 and all(map(holds, form[1:-1], value))
    return type(value) is str and value in form.split("|")

def is_sound(kind, body):
    """Whether a record has the right form, and makes sense by itself."""
    forms = FORMS[kind]
    return (NEEDED[kind] <= body.keys() <= forms.keys()
            and all(holds(forms[name].rstrip("?"), value) for name, value in body.items())
            and (kind not in SOUND or SOUND[kind](body)))

class Bundle:
    """The lines of a bundle, each checked for everything but what follows from the others."""
    def __init__(self, path, head):
        self.path, self.seq, self.number, self.prev = path, 0, 1, head
        self.last, self.key, self.header, self.record = (-1, []), None, None, ""

    def lines(self):
        """Yields (kind, body). At the end `prev` is the head."""
        with (gzip.open if str(self.path).endswith(".gz") else open)(self.path, "rb") as file:
            while (line := file.readline(LINE_BYTES_MAX)) or self.last[0] != KINDS.index("seal"):
                self.record, self.number = "", self.seq + 1
                if line[-1:] != b"\n":
                    self.refuse("has no end" if line else "the bundle ends without a seal")
                if self.last[0] == KINDS.index("seal"):
                    self.refuse("comes after the seal")
                yield self.line(line[:-1])

    def line(self, line):
        body, kind, prev, seq = self.parsed(line)
        ids = [body[name] for name in IDS.get(kind, [kind]) if name in body]
        self.record = " ".join([kind, *filter(None, ids)])
        self.same("seq", seq, self.seq)
        self.same("prev", prev, self.prev or prev, str)
        here = KINDS.index(kind), ids  # Texts are in the order of their bytes in UTF-8.
        skips = {"header", "params", "result"} & set(KINDS[self.last[0] + 1:here[0]])
        if here <= self.last or skips:
            self.refuse("cannot come here")
        self.last = here
        self.signed(kind, body, prev)
        self.prev = hashlib.sha256(line).hexdigest()
        self.seq += 1
        return kind, body

    def parsed(self, line):
        try:
            found = json.loads(line.decode())
            if type(found) is dict and is_sound("line", found) and canonical(found) == line:
                body, kind, prev, seq = (found[name] for name in sorted(found))
                if kind in KINDS and canonical(prev) == b'"%s"' % prev.encode() and is_sound(kind, body):
                    return body, kind, prev, seq
        except (ValueError, RecursionError):
            pass
        return self.refuse("is not the canonical form of a record")

    def signed(self, kind, body, prev):
        message = None
        if kind == "header":
            self.header, self.key = body, Key(digits(body["market"], 32))
        elif kind == "event":
            unsigned = {name: value for name, value in body.items() if name != "signature"}
            message = b"nave event 1\n" + canonical(unsigned)
        elif kind == "seal":
            market, epoch = self.header["market"], self.header["epoch"]
            self.compare(body, {"epoch": epoch, "lines": self.seq})
            self.same("market", body["market"], market, str)
            message = f"nave evidence 1\n{market}\n{epoch}\n{self.seq}\n{prev}".encode()
        if message and not self.key.signed(digits(body["signature"], 64), message):
            self.refuse("is not signed by the market")

    def same(self, field, says, follows, text=lambda value: canonical(value).decode()):
        if says != follows:
            raise Difference(self.number, self.record, field, text(says), text(follows))

    def compare(self, says, follows):
        for name in sorted(follows):
            self.same(name, says[name], follows[name])

    def refuse(self, what):
        raise Difference(self.number, self.record, "", "", what)

def digits(text, length):
    """Bytes in hexadecimal, in small letters; b"" where it is something else."""
    return bytes.fromhex(text) if re.fullmatch("[0-9a-f]{%d}" % (2 * length), text) else b""

class Unsettled(Exception):
    """Evidence that no pay follows from."""

def fit(value):
    if not -(2**63) <= value < 2**63:
        raise Unsettled("a number does not fit 63 bits")
    return value

def charge(lease, ms, gpu_hour, vcpu_hour=0, gib_hour=0):
    """What a time of a lease costs at these prices."""
    hour = (gpu_hour * lease["milli_gpu"] + vcpu_hour * lease["milli_cpu"]) * GIB + gib_hour * lease["memory"] * 1000
    return fit(ms * hour // (HOUR_MS * 1000 * GIB))

def cut(amount, all_, most):
    """What is left of an amount where there is not enough for all of them."""
    return amount * most // all_ if all_ > most else amount

class Epoch:
    """Takes the evidence of an epoch in its order, and says what comes of it."""
    def __init__(self, header, params):
        self.head, self.params, self.targets = header, params, dict(params["standby_targets"])
        self.classes, self.miners, self.faults, self.broken_ms = {}, {}, {}, defaultdict(int)
        self.idle, self.delivered, self.earned, self.credits = defaultdict(list), defaultdict(int), defaultdict(int), 0
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
            self.miners[body["hotkey"]] = SimpleNamespace(
                state=body, gone=body["banned"] or body["verified_hosts"] == 0,
                used=0, bids=0, penalty=0, standby=0, device_ms=0, broken=defaultdict(int))
        elif kind != "verdict":
            if body["hotkey"] not in self.miners:
                raise Unsettled(f"there is no miner {body['hotkey']}")
            getattr(self, f"take_{kind}")(body, self.miners[body["hotkey"]])

    def take_event(self, event, miner):
        counts, breach = "confirmed_by" in event and event["blame"] == "host", event["kind"] in BREACHES
        if counts and breach:
            miner.broken[event["host"]] += PPM * ("lease" not in event)
            self.broken_ms[event["host"]] = max(self.broken_ms[event["host"]], event["at_ms"])
        if "lease" in event:
            faults, lost = self.faults_of(event), event["until_ms"] - event["from_ms"]
            faults[2:] = fit(faults[2] + counts * lost), faults[3] + (counts and breach)

    def faults_of(self, body):
        """The host and hotkey of a lease, the time that it lost so far, and the breaches."""
        faults = self.faults.setdefault(body["lease"], [body["host"], body["hotkey"], 0, 0])
        if faults[:2] != [body["host"], body["hotkey"]]:
            raise Unsettled(f"events of lease {body['lease']} are of another host")
        return faults

    def worth(self, lease, ms):
        vcpu_hour, gib_hour = lease["vcpu_hour"], lease["gib_hour"]
        if "baseline" in lease and lease["milli_gpu"] > 0:
            return min(charge(lease, ms, lease["baseline"]), charge(lease, ms, lease["gpu_hour"], vcpu_hour, gib_hour))
        return charge(lease, ms, 0, min(vcpu_hour, self.params["vcpu_hour"]), min(gib_hour, self.params["gib_hour"]))

    def take_lease(self, lease, miner):
        params, used_ms, charged, gpu = self.params, lease["used_ms"], lease["charged"], lease["milli_gpu"]
        lost, breaches = self.faults_of(lease)[2:]
        del self.faults[lease["lease"]]
        adherence = used_ms * PPM // (used_ms + lost) if used_ms + lost else PPM
        adherence = max(0, adherence - breaches * params[f"breach_{lease['term']}_ppm"])
        worth, (size, device) = self.worth(lease, used_ms), (gpu, 1000) if gpu else (lease["milli_cpu"], 16000)
        miner.penalty += fit(breaches and breaches * self.worth(lease, params["penalty_ms"]))
        miner.broken[lease["host"]] += breaches * (min(size, device) * PPM // device)
        if "related" in lease:
            return
        kept, keep = charged * adherence // PPM, PPM - params["margin_ppm"]
        earned = min(worth * adherence // PPM, kept)
        used = earned * keep // PPM
        miner.used += used
        miner.bids += (kept - earned) * keep // PPM
        miner.device_ms += fit(used_ms * size // device)
        self.credits += charged - kept
        if lease.get("class") in self.classes:
            self.delivered[lease["class"]] += fit(used_ms * gpu // 1000)
            self.earned[lease["class"]] += used

    def take_idle(self, idle, miner):
        miner.device_ms += idle["device_ms"]
        since = max(idle["obliged_since_ms"], self.broken_ms[idle["host"]])
        if not miner.gone and since + self.params["obliged_ms"] <= self.head["closed_ms"]:
            self.idle[idle["class"]].append(idle)

    def standby(self, name, class_):
        params, baseline, lines, earned = self.params, class_.get("baseline"), self.idle[name], []
        device_ms, used = fit(self.delivered[name]), fit(self.earned[name])
        if baseline is None or name not in self.targets:
            return
        from_, until = params["standby_from_ppm"], params["standby_until_ppm"]
        utilisation = class_["leased_milli"] * 1000 // class_["devices"] if class_["devices"] else 0
        above = max(0, min(utilisation, until) - from_)
        rate = fit(baseline * params["standby_top_ppm"] * above // ((until - from_) * PPM))
        most = fit(self.targets[name] * (self.head["closed_ms"] - self.head["opened_ms"]))
        all_ms = fit(sum(line["device_ms"] for line in lines))
        for line in lines:
            below = max(0, baseline - line["gpu_hour"])
            factor = min(PPM, below * PPM * PPM // max(1, baseline * params["price_band_ppm"]))
            earned.append(fit(cut(line["device_ms"], all_ms, most) * rate * factor // (HOUR_MS * PPM)))
        room, sum_ = max(0, baseline * device_ms // HOUR_MS - used), fit(sum(earned))
        for line, amount in zip(lines, earned):
            miner = self.miners[line["hotkey"]]
            miner.standby = fit(miner.standby + cut(amount, sum_, room))

    def finish(self):
        """The pay lines and the result."""
        if self.faults:
            raise Unsettled(f"there is no lease {min(self.faults)}, and there are events of it")
        for name, class_ in self.classes.items():
            self.standby(name, class_)
        lines = {hotkey: self.balance(miner) for hotkey, miner in self.miners.items()}
        owed = {hotkey: max(line["carry"], 0) if self.miners[hotkey].state["verified_hosts"] else 0
                for hotkey, line in lines.items()}
        all_owed, all_vested, values = sum(owed.values()), sum(line["vested"] for line in lines.values()), {}
        for hotkey, line in lines.items():
            part = cut(owed[hotkey], all_owed, self.smoothed)
            cash = min(owed[hotkey] - part, line["used"])
            line["granted"] = cut(line["vested"], all_vested, max(0, self.smoothed - all_owed))
            line["carry"] = fit(line["carry"] + line["granted"] - cash)
            line["cash"] = fit(line["bids"] + cash)
            values[hotkey] = fit(part + line["granted"])
        unearned, sink = self.smoothed - sum(values.values()), self.head["sink"]
        values[sink] = fit(values.get(sink, 0) + unearned)
        weights = shares(values, self.smoothed, sink)
        for hotkey, line in lines.items():
            line["weight"] = weights.get(hotkey, 0)
        totals = {name: fit(sum(pay[name] for pay in lines.values())) for name in ("cash", "granted", "used", "vested")}
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
        entries, closed_ms, due, left = miner.state["vesting"], self.head["closed_ms"], 0, []
        if miner.gone:
            return 0, fit(sum(amount - vested for _, _, amount, vested in entries)), []
        for from_ms, until_ms, amount, vested in entries:
            so_far = max(vested, amount * max(0, min(closed_ms, until_ms) - from_ms) // (until_ms - from_ms))
            due += so_far - vested
            if closed_ms < until_ms:
                left.append([from_ms, until_ms, amount, so_far])
        return fit(due), 0, left

    def window(self, miner):
        """Its days and breaches, and what they show."""
        params, today = self.params, self.head["closed_ms"] // DAY_MS
        days = {day: (ms, breaches) for day, ms, breaches in miner.state["days"] if day > today - params["window_days"]}
        breaches = fit(sum(-(-parts // PPM) for parts in miner.broken.values()))
        if miner.device_ms or breaches:
            ms, before = days.get(today, (0, 0))
            days[today] = fit(ms + miner.device_ms), fit(before + breaches)
        k, h = sum(of_day[1] for of_day in days.values()) + 1, sum(of_day[0] for of_day in days.values())
        low = max(0, k * PPM + 568_700 - isqrt(k * 2_706_025_000_000))
        bound, until = fit(low * HOUR_MS // (h + params["prior_device_ms"])), miner.state["demoted_until_ms"]
        if bound > params["demotion_ppm"]:
            until = max(until, fit(self.head["closed_ms"] + params["demotion_ms"]))
        return {"days": [[day, *days[day]] for day in sorted(days)], "breaches": breaches, "bound_ppm": bound,
                "demoted_until_ms": until}

def shares(values, total, sink):
    """65535 in proportion to the values, by largest remainder."""
    if total == 0:
        return {sink: WEIGHTS}
    floors = {hotkey: value * WEIGHTS // total for hotkey, value in values.items()}
    by_rest = sorted(values, key=lambda hotkey: (-(values[hotkey] * WEIGHTS % total), hotkey))
    for hotkey in by_rest[:WEIGHTS - sum(floors.values())]:
        floors[hotkey] += 1
    return {hotkey: floors[hotkey] for hotkey in sorted(floors) if floors[hotkey]}

class Audit(Bundle):
    """A bundle, after the audit of the epoch before, if there was one."""
    def __init__(self, path, before=None):
        super().__init__(path, before and before.prev)
        self.before, self.epoch, self.follow, self.pays = before, None, None, {}
        left = {hotkey: {name: pay[name] for name in FRESH} for hotkey, pay in (before.pays if before else {}).items()}
        self.expected = {hotkey: state for hotkey, state in left.items() if state != FRESH}
        for kind, body in self.lines():
            try:
                self.take(kind, body)
            except Unsettled as error:
                self.refuse(str(error))
        self.before = None

    def take(self, kind, body):
        if self.before:
            self.goes_on(kind, body)
        if kind == "params":
            self.epoch = Epoch(self.header, body)
        elif kind in ("pay", "result"):
            self.closes(kind, body)
        elif kind not in ("header", "seal"):
            self.epoch.take(kind, body)

    def goes_on(self, kind, body):
        """Compares a record with what the epoch before left."""
        then = self.before.header
        if kind == "header":
            opened_ms = max(body["opened_ms"], then["closed_ms"])
            self.compare(body, {"epoch": then["epoch"] + 1, "market": then["market"], "opened_ms": opened_ms})
        elif kind == "params":
            emissions = [*then["emissions"], then["emission"]]
            self.compare(self.header, {"emissions": emissions[max(0, len(emissions) + 1 - body["smoothing"]):]})
            if body["version"] == self.before.epoch.params["version"]:
                self.compare(body, self.before.epoch.params)
        elif kind == "miner":
            self.compare(body, self.expected.pop(body["hotkey"], FRESH))

    def closes(self, kind, body):
        """Compares a record with what follows from all evidence."""
        if self.follow is None:
            if self.expected:
                self.refuse(f"comes, and the miner {min(self.expected)} of the epoch before did not")
            lines, self.totals = self.epoch.finish()
            self.follow = iter([*lines.values(), self.totals])
        follows = next(self.follow)
        if kind == "pay":
            if follows is self.totals:
                self.refuse("is of no miner")
            self.same("hotkey", body["hotkey"], follows["hotkey"])
            self.pays[body["hotkey"]] = body
        elif follows is not self.totals:
            self.refuse(f"comes before the pay of {follows['hotkey']}")
        self.compare(body, follows)

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
            found = dict(zip(("line", "record", "field", "says", "follows"), difference.args), bundle=path)
            print(canonical(found).decode() if as_json else f"{path}: {difference}")
            return 1
        except (OSError, EOFError, zlib.error) as error:
            print(f"{path}: the bundle cannot be read: {error}", file=sys.stderr)
            return 2
        epoch, lines, head = before.header["epoch"], before.seq, before.prev
        found = {"bundle": path, "epoch": epoch, "lines": lines, "head": head, "result": before.totals}
        print(canonical(found).decode() if as_json else
              f"{path}: epoch {epoch} follows from its {lines} lines; its head is {head}")
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
