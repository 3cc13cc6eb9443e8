-- What a cloud said of what was launched: the quote that a launch rests on, for whoever asks later why it was taken.
alter table machine_attempts
    add column quoted text check (octet_length(quoted) <= 8192),
    add column quoted_ms bigint,
    add constraint machine_attempts_quoted check ((quoted is null) = (quoted_ms is null));
comment on column machine_attempts.quoted is 'What the cloud said of the offer before it was launched, without secrets; none for other calls';
comment on column machine_attempts.quoted_ms is 'When it was asked for that';
