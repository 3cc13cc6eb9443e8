-- Whom a ban spares is decided when it begins: what a name has shown by then, and not that it was once to show something.

alter table bans add spared uuid[] not null default '{}';
update bans b set spared = array(
    select h.host_id from hosts h where h.hotkey = b.hotkey and h.host_id <> b.host_id and h.tested_at_ms < b.since_ms
        and h.enrolled_at_ms < (select drawn_at_ms from challenges c where c.challenge_id = b.challenge_id));
comment on column bans.spared is 'Other hosts of its miner that had joined before that test, were heard of when the ban began, and had proven what they claimed or were being tested, too';

-- Bans that count against a host, those that are over too: its own, those of its miner that do not spare it, and those that took
-- GPUs along which it claims. A rented machine is a cloud's, and its miner only whoever rents it: what another one did says
-- nothing of it.
create or replace function bans_of(host uuid) returns setof bans language sql stable
    begin atomic
        select b.* from hosts h join bans b
            on b.host_id = h.host_id
            or (b.hotkey = h.hotkey and (not h.host_id = any(b.spared) or h.enrolled_at_ms >= b.since_ms)
                and not exists (select from machines m where m.host_id = h.host_id))
            or b.devices && array(select device ->> 'uuid' from jsonb_array_elements(h.inventory -> 'devices') device)
        where h.host_id = host and b.lifted_at_ms is null;
    end;
comment on column bans.hotkey is 'Its miner: no host of theirs that the ban does not spare is tested before that is over; but for rented machines';

alter table hosts drop column tested_at_ms;
