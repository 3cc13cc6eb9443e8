-- When each GPU was shown last: shares of one keep it out of tests, and not for ever.

alter table device_claims add shown_up_ms bigint not null default control_ms();
comment on column device_claims.shown_up_ms is 'The control clock when its host passed the last test in which it was, be it beside jobs';

-- Two schedulers may rent with two hotkeys at one account: neither launches what the other wanted, nor lets it go.
create table cloud_keepers (
    cloud      text not null,
    hotkey     text not null,
    kept_at_ms bigint not null,
    constraint cloud_keepers_pkey primary key (cloud, hotkey)
);
comment on table cloud_keepers is 'Which platforms'' schedulers look after the machines of which clouds';
comment on column cloud_keepers.cloud is 'Its name, such as lambda';
comment on column cloud_keepers.hotkey is 'The platform''s: what it wanted is launched with its tickets';
comment on column cloud_keepers.kept_at_ms is 'When its scheduler last began to look; long ago where it is gone, or the cloud is in its file no more';
