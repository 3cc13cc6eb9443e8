-- Machines that are rented from clouds: a row is the wish for one, and all that becomes of it.

create table machines (
    machine_id     uuid primary key,
    version        bigint not null,
    cloud          text not null,
    made_at_ms     bigint not null,
    asked_at_ms    bigint,
    demand         text not null default 'wanted',
    idle_at_ms     bigint,
    enrolled_at_ms bigint,
    ending         text,
    is_closed      boolean not null default false,
    cost           bigint not null default 0,
    known          jsonb not null,
    shape          jsonb,
    hotkey         text,
    job_id         uuid references jobs,
    host_id        uuid references hosts,
    constraint machines_version check (version > 0),
    constraint machines_demand check (demand in ('wanted', 'idle', 'released')),
    constraint machines_idle check ((demand = 'idle') = (idle_at_ms is not null)),
    constraint machines_closed check (not is_closed or ending is not null),
    constraint machines_cost check (cost >= 0),
    constraint machines_enrolled check ((host_id is null) = (enrolled_at_ms is null)),
    constraint machines_wanted check ((shape is null) = (hotkey is null) and (shape is null) = (job_id is null)),
    constraint machines_host unique (host_id)
);
create index machines_open on machines (cloud) where not is_closed;
create index machines_latest on machines (made_at_ms);
create index machines_of_jobs on machines (job_id);
comment on table machines is 'Machines that were wanted from clouds. Rows are never removed: a machine may turn up long after';
comment on column machines.machine_id is 'Our id of it, and its name in the cloud; a ticket of this id makes it a host';
comment on column machines.version is 'How often the row was written: who writes it must have read it last';
comment on column machines.cloud is 'Where, such as lambda';
comment on column machines.made_at_ms is 'When it was wanted';
comment on column machines.asked_at_ms is 'When its launch was asked for; none while it was not';
comment on column machines.demand is 'Whether it is wanted, idle or released';
comment on column machines.idle_at_ms is 'Since when it is idle';
comment on column machines.enrolled_at_ms is 'When its agent enrolled';
comment on column machines.ending is 'Why it goes back or never was, for programs; none while it stays. From then on its host takes no jobs';
comment on column machines.is_closed is 'Whether nothing is left to be done';
comment on column machines.cost is 'What it has cost so far at the most, in micro-USD';
comment on column machines.known is 'What its keeper knows of it: offer, prices, launch, and each machine that bears its name';
comment on column machines.shape is 'What it has and costs for jobs; none where it only turned up';
comment on column machines.hotkey is 'Who signs its ticket: the platform; none where it only turned up';
comment on column machines.job_id is 'The job that it was rented for, first of all; none where it only turned up';
comment on column machines.host_id is 'The host that it is, once its agent has enrolled';

create function machines_stay() returns trigger language plpgsql as $$
begin
    raise exception 'rows of machines are never removed' using errcode = 'check_violation', constraint = 'machines_stay';
end $$;
create trigger machines_stay before delete on machines for each row execute function machines_stay();

create table machine_attempts (
    attempt_id bigint generated always as identity primary key,
    machine_id uuid,
    cloud      text not null,
    call       text not null,
    first_ms   bigint not null,
    last_ms    bigint not null,
    times      bigint not null default 1,
    hourly     bigint,
    reason     text,
    code       text,
    message    text,
    constraint machine_attempts_reason check ((reason is null) = (code is null) and (reason is null) = (message is null))
);
create index machine_attempts_of on machine_attempts (machine_id);
create index machine_attempts_latest on machine_attempts (last_ms);
comment on table machine_attempts is 'What clouds were asked to do and what they said to it';
comment on column machine_attempts.attempt_id is 'Counts up';
comment on column machine_attempts.machine_id is 'The machine; none for lists';
comment on column machine_attempts.cloud is 'Who was asked';
comment on column machine_attempts.call is 'What for: quote, launch, list, look or return';
comment on column machine_attempts.first_ms is 'When, at first';
comment on column machine_attempts.last_ms is 'When the same came of it last';
comment on column machine_attempts.times is 'How often the same came of it, one time after the other';
comment on column machine_attempts.hourly is 'What the machine cost an hour then, in micro-USD';
comment on column machine_attempts.reason is 'Why it did not work, for programs; none where it did';
comment on column machine_attempts.code is 'The cloud''s own word for that';
comment on column machine_attempts.message is 'Its explanation, without secrets';
